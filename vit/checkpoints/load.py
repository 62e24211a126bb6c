"""Load anything: read, recognise, rename, resize, merge strictly, report every key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoints import folder, hub, timm
from vit.checkpoints.read import read_tensors
from vit.foundation import UserError
from vit.layers.positions import resize_positions
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier, Preprocessing
from vit.models.encoder import image_encoder


@dataclass
class LoadReport:
    """What happened to each key, and what was assumed because the file does not say it."""

    source: str
    matched: int = 0
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people, a line a subject."""
        lines = [f"{self.source}: {self.matched} tensors loaded"]
        subjects = {"resized": self.resized, "left out": self.dropped, "assumed": self.assumed}
        return lines + [f"  {name}: {', '.join(items)}" for name, items in subjects.items() if items]


@dataclass(frozen=True)
class Content:
    """A checkpoint as it was found, before a model is built of it."""

    source: str
    tensors: dict[str, Tensor]
    known: dict[str, Any]  # keywords of image_encoder that a sidecar told
    pool: str | None = None
    labels: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)


def load(source: str | Path, **options: Any) -> Classifier:
    """The model of a checkpoint: a .safetensors or .pth file, a model folder or `timm:NAME`.

    Options are those of `load_with_report`, which also says what happened to each key.

    Raises:
        UserError: when the checkpoint can't be read, or does not fit; every key that is at fault is counted.
    """
    return load_with_report(source, **options)[0]


def load_with_report(
    source: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    pool: str | None = None,
    drop_path: float = 0.0,
    **architecture: Any,
) -> tuple[Classifier, LoadReport]:
    """As `load`.

    Args:
        image_size: pixels (height, width) that the positions are resized to; None keeps the checkpoint's.
        pool: see `Classifier`; None keeps the checkpoint's, or takes "class" where there is a class token. The
            head of another pooling is left out.
        drop_path: see `Encoder`.
        architecture: `num_heads`, `act`, `norm_eps`, `pos_interpolation`, where the checkpoint does not say.
    """
    content = read(source)
    _refuse_unknown(content)
    _refuse_nonfinite(content)
    known = {**content.known, **{name: value for name, value in architecture.items() if value is not None}}
    keywords, assumed = timm.architecture(content.tensors, known, image_size=image_size)
    report = LoadReport(content.source, assumed=assumed)
    patch_size = keywords["patch_size"]
    grid = (keywords["image_size"][0] // patch_size[0], keywords["image_size"][1] // patch_size[1])
    state = timm.to_ours(content.tensors, grid)
    keywords["image_size"] = image_size or keywords["image_size"]
    given_pool = content.pool or ("class" if keywords["class_token"] else "mean")
    if pool not in (None, given_pool):
        report.dropped += [name for name in state if name.startswith("head.")]
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    has_head = "head.weight" in state
    try:
        with torch.device("meta"):  # no time and memory for random weights that are replaced at once
            model = Classifier(
                image_encoder(**keywords, drop_path=drop_path),
                state["head.weight"].shape[0] if has_head else 0,
                pool=pool or given_pool,
                labels=content.labels if has_head else (),
                preprocessing=Preprocessing(**{**content.preprocessing, "image_size": tuple(keywords["image_size"])}),
            )
    except (TypeError, ValueError) as error:  # an option or a config that no model can have
        raise UserError(f"{content.source} can't be built: {error}") from None
    _fit_positions(state, grid, model.encoder.grid, keywords["pos_interpolation"], report)
    _merge_strictly(model, state, report)
    return model, report


def read(source: str | Path) -> Content:
    """The tensors of a checkpoint and all that stands beside them."""
    name = str(source)
    if name.startswith("timm:"):
        path, config = hub.fetch_timm(name.removeprefix("timm:"))
        return Content(name, read_tensors(path), {}, preprocessing=_timm_preprocessing(config))
    path = Path(source)
    if not path.is_dir():
        return Content(name, read_tensors(path), {})
    config = folder.read_config(path)
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in config["architecture"].items()}
    preprocessing = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config["preprocessing"].items()
    }
    return Content(
        name,
        read_tensors(path / folder.WEIGHTS),
        known,
        config["pool"],
        tuple(config["labels"]),
        preprocessing,
    )


def _timm_preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": tuple(config.get("mean", IMAGENET_MEAN)),
        "std": tuple(config.get("std", IMAGENET_STD)),
        "interpolation": config.get("interpolation", "bicubic"),
        "resize_mode": "crop",
        "crop_pct": config.get("crop_pct", 1.0),
    }


def _refuse_unknown(content: Content) -> None:
    if not timm.recognises(content.tensors):
        raise UserError(
            f"{content.source} is no Vision Transformer that is known here; it has {len(content.tensors)} tensors.\n"
            f"Its first names are {', '.join(list(content.tensors)[:3])}.\n"
            "Allowed are weights under timm's names, and model folders."
        )


def _refuse_nonfinite(content: Content) -> None:
    bad = [name for name, value in content.tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(
            f"{content.source} has NaN or infinite weights in {len(bad)} of {len(content.tensors)} tensors.\n"
            f"The first is {bad[0]}. Take an earlier checkpoint of the run that wrote it."
        )


def _fit_positions(
    state: dict[str, Tensor],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    interpolation: str,
    report: LoadReport,
) -> None:
    if grid == new_grid:
        return
    name = "encoder.embed.pos_embed"
    state[name] = resize_positions(state[name], grid, new_grid, interpolation)
    report.resized.append(f"positions from {grid[0]} x {grid[1]} to {new_grid[0]} x {new_grid[1]} by {interpolation}")


def _merge_strictly(model: Classifier, state: dict[str, Tensor], report: LoadReport) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shared = expected.keys() & state.keys()
    wrong = sorted(name for name in shared if expected[name].shape != state[name].shape)
    if missing or unexpected or wrong:
        raise UserError(
            f"{report.source} does not fit: {len(shared) - len(wrong)} tensors match.\n"
            + "\n".join(
                f"{len(names)} {what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
                for what, names in (
                    ("missing", missing),
                    ("unexpected", unexpected),
                    ("of another shape", wrong),
                )
                if names
            )
        )
    # Copies, in float32: a file may be memory-mapped or of half precision.
    model.load_state_dict({name: value.float().clone() for name, value in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    report.matched = len(shared)
