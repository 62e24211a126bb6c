"""What is in a checkpoint and what loading it would do, as rows to print, even for a checkpoint that is refused."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit.checkpoints.load import LoadReport, load_with_report
from vit.checkpoints.targets import TARGETS
from vit.checkpoints.targets.target import sha256
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.cost import cost

LABELS_SHOWN = 12

Row = tuple[str, str]  # a subject, and the text about it


@dataclass
class Inspection:
    """Args:
    rows: what was found.
    refusal: why it can't be loaded, if it can't.
    """

    rows: list[Row] = field(default_factory=list)
    refusal: UserError | None = None


def inspect(
    source: str, *, image_size: tuple[int, int] | None = None, classes: int | None = None, **options: Any
) -> Inspection:
    """Loads a checkpoint, and describes it. Nothing in the file is executed.

    Args:
        source: the checkpoint.
        image_size: (height, width) in pixels to load it for; None for its own.
        classes: number of classes of the data to train it on; None for no row about that.
        options: what the checkpoint does not say, as `vit.load` takes it.

    Raises:
        UserError: when there is nothing to read.
    """
    report = LoadReport()
    try:
        model, _ = load_with_report(source, image_size=image_size, report=report, **options)
    except UserError as error:
        if not report.tensors:
            raise
        shape = [(name, _text(value)) for name, value in report.architecture.items()]
        return Inspection([*_file(report), *shape, *_keys(report)], error)
    rows = [*_file(report), *_architecture(model), *_cost(model), *_use(model, report), *_keys(report)]
    if classes is not None:
        rows.append(("at --classes", _new_head(model, classes)))
    return Inspection([*rows, *_exports(model)])


def _file(report: LoadReport) -> list[Row]:
    rows = [("checkpoint", report.source)]
    if report.layout:
        rows.append(("source", f"{report.layout} (by the names of its tensors)"))
    rows.append(
        ("tensors", f"{report.tensors} in it" + (f", {report.matched} of the model's" if report.matched else ""))
    )
    for path in _parts(report.file):
        rows += [("file", f"{path.name}, {path.stat().st_size / 2**20:,.1f} MiB"), ("sha256", sha256(path))]
    return rows


def _parts(file: Path | None) -> list[Path]:
    """The files with weights; for an index, the files that it names."""
    if file is None or file.suffix != ".json":
        return [file] if file else []
    names = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
    return [file.parent / name for name in sorted(names)]


def _architecture(model: Classifier) -> list[Row]:
    height, width = model.encoder.grid
    prefix = model.encoder.num_prefix_tokens
    parameters = sum(weight.numel() for weight in model.parameters())
    return [
        *((name, _text(value)) for name, value in model.encoder.architecture.items()),
        ("pool", model.pool if model.pool_blocks == 1 else f"{model.pool} of the last {model.pool_blocks} blocks"),
        ("tokens", f"{height * width + prefix} = {prefix} prefix + {height} x {width} patches"),
        ("parameters", f"{parameters:,}"),
    ]


def _cost(model: Classifier) -> list[Row]:
    size = model.encoder.architecture["image_size"]
    found = cost(model, size)
    return [
        ("FLOPs", f"{found.flops / 1e9:,.2f} G per image of {_text(size)} (a multiplication and an addition are two)"),
        ("activations", f"{found.activations / 2**20:,.1f} MiB per image in a training step, float32"),
    ]


def _use(model: Classifier, report: LoadReport) -> list[Row]:
    prepared = model.preprocessing
    crop = f"central crop of {prepared.crop_pct:.1%}" if prepared.resize_mode == "crop" else "the whole photo squashed"
    more = f" and {len(model.labels) - LABELS_SHOWN} more" if len(model.labels) > LABELS_SHOWN else ""
    assumed = "" if report.tells_preprocessing else "; assumed, with mean and std: the checkpoint does not say"
    return [
        ("classes", f"{model.num_classes}" if model.num_classes else "0: it has no head"),
        ("labels", ", ".join(model.labels[:LABELS_SHOWN]) + more or "none"),
        *_neighbours(model),
        ("preprocessing", f"{_text(prepared.image_size)}, {crop}, {prepared.interpolation}{assumed}"),
        ("mean, std", f"{_text(prepared.mean)}, {_text(prepared.std)}"),
    ]


def _neighbours(model: Classifier) -> list[Row]:
    found = model.neighbours
    if found is None:
        return []
    photographs = f"{found.voters} of {len(found.features):,} training photographs"
    return [("neighbours", f"{photographs} vote, with a share of {found.share:.0%}")]


def _keys(report: LoadReport) -> list[Row]:
    subjects = {
        "resized": report.resized,
        "left out": report.dropped,
        "assumed": report.assumed,
        "note": report.notes,
        "missing": report.missing,
        "unexpected": report.unexpected,
        "of another shape": report.misshapen,
    }
    return [(f"{name} ({len(items)})", ", ".join(items)) for name, items in subjects.items() if items]


def _new_head(model: Classifier, classes: int) -> str:
    if classes == model.num_classes:
        return "the head is kept if the labels are the same, in any order; otherwise a new one has random weights"
    head = (
        f"head.weight and head.bias, for {model.num_classes} classes, are left out" if model.num_classes else "no head"
    )
    return f"{head}; a new head has {classes} x {model.num_features} random weights"


def _exports(model: Classifier) -> list[Row]:
    told = ((target.name, "; ".join(target.obstacles(model))) for target in TARGETS)
    return [(f"as {name}", f"can't represent {missing}" if missing else "can be exported") for name, missing in told]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "(" + ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
