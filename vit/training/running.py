"""The state of metrics in the middle of an epoch, for checkpoints, in which torchmetrics does not save it."""

from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics import Metric


def states(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The accumulated state of the metrics, by name."""
    return {
        name: {
            "updates": metric.update_count,
            "values": {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()},
        }
        for name, metric in metrics.items()
    }


def restore(metrics: Mapping[str, Metric], saved: Mapping[str, Any]) -> None:
    """Restores the metrics to a state that `states` returned."""
    for name, metric in metrics.items():
        metric.reset()
        for key, value in saved[name]["values"].items():
            setattr(metric, key, value.to(metric.device))
        metric._update_count = saved[name]["updates"]
