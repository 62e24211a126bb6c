"""`vit tune`, as it is typed: what it finds is of the model as it would be trained, for the run as it would be."""

from pathlib import Path

import pytest

from tests.verbs import TINY, Vit
from vit.models.classifier import Classifier
from vit.training import finders


def test_the_rate_that_tune_prints_is_what_the_run_is_given(
    vit: Vit, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps of 4 images, with a rate that is scaled from 16, the run takes a quarter."""
    monkeypatch.setattr(finders, "find_rate", lambda *_, **__: finders.RateRange([1e-4, 2e-3, 1e-2], [3.0, 2.0, 0.0]))
    monkeypatch.setattr("vit.training.pictures.draw_rates", lambda *_: None)
    line = f"tune {TINY} --data.root {classes} --find lr"
    plain = vit(f"{line} --out {tmp_path}/plain").out
    scaled = vit(f"{line} --optim.scale_lr linear --optim.lr_base_size 16 --out {tmp_path}/scaled").out
    rates = [float(out.split("--optim.lr ")[1]) for out in (plain, scaled)]
    assert rates[1] == pytest.approx(4 * rates[0])


def test_tune_looks_for_the_batch_size_of_the_model_as_it_would_be_trained(
    vit: Vit, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def find(network: Classifier, **_: object) -> list[finders.Speed]:
        seen.append(network.encoder.activation_checkpointing)
        return [finders.Speed(2, 10.0, 1e6)]

    monkeypatch.setattr(finders, "find_batch_size", find)
    for value in ("true", "false"):
        told = f"--trainer.activation_checkpointing {value} --out {tmp_path}/{value}"
        ran = vit(f"tune {TINY} --data.root {classes} --find batch_size {told}")
        assert "--data.batch_size 2" in ran.out
    assert seen == [True, False]
    assert (
        "--trainer.compile has no effect"
        in vit(
            f"tune {TINY} --data.root {classes} --find batch_size --trainer.compile true --out {tmp_path}/compiled"
        ).err
    )
