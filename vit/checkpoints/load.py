"""Load anything: read, recognise, rename, resize, merge strictly, report every key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.checkpoints import canonical
from vit.checkpoints.content import Content, read
from vit.checkpoints.sources import SOURCES, Source, Tensors, recognise
from vit.foundation import UserError
from vit.layers.positions import resize_positions
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder


@dataclass
class LoadReport:
    """What happened to each key, and what was assumed because the file does not say it."""

    source: str
    layout: str
    matched: int = 0
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people, a line a subject."""
        lines = [f"{self.source}: {self.matched} tensors loaded, named as {self.layout} does"]
        subjects = {"resized": self.resized, "left out": self.dropped, "assumed": self.assumed, "note": self.notes}
        return lines + [f"  {name}: {', '.join(items)}" for name, items in subjects.items() if items]


def load(source: str | Path | nn.Module, **options: Any) -> Classifier:
    """The model of a checkpoint: a .safetensors or .pth file, a model folder or `timm:NAME`.

    Options are those of `load_with_report`, which also says what happened to each key.

    Raises:
        UserError: when the checkpoint can't be read, or does not fit; every key that is at fault is counted.
    """
    return load_with_report(source, **options)[0]


def load_with_report(
    source: str | Path | nn.Module,
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
    origin = _recognised(content)
    converted = origin.convert(content.tensors)
    _refuse_nonfinite(content)
    told = {name: value for name, value in architecture.items() if value is not None}
    known = {**converted.known, **content.facts.encoder, **told}
    keywords, assumed = canonical.architecture(converted.tensors, known, origin.assumes, image_size=image_size)
    report = LoadReport(content.name, origin.name, dropped=list(converted.left_out), assumed=assumed)
    report.notes += content.facts.notes
    patch_size = keywords["patch_size"]
    grid = (keywords["image_size"][0] // patch_size[0], keywords["image_size"][1] // patch_size[1])
    keywords["image_size"] = image_size or keywords["image_size"]
    given_pool = content.facts.pool or converted.pool or canonical.pooling(converted.tensors)
    state = canonical.to_ours(converted.tensors, grid)
    if pool not in (None, given_pool):
        state = _without_head(state, report)
    model = _build(content, keywords, drop_path, pool or given_pool, state)
    _fit_positions(state, grid, model.encoder.grid, keywords["pos_interpolation"], report)
    _merge_strictly(model, state, report)
    return model, report


def _recognised(content: Content) -> Source:
    found = recognise(content.tensors)
    if found is None:
        raise UserError(
            f"{content.name} is no Vision Transformer that is known here; it has {len(content.tensors)} tensors.\n"
            f"Its first names are {', '.join(list(content.tensors)[:3])}.\n"
            f"Allowed are weights as {', '.join(source.name for source in SOURCES)} name them."
        )
    return found


def _without_head(state: Tensors, report: LoadReport) -> Tensors:
    """The encoder's tensors: what another pooling gave the head to read is not what this head has learned."""
    report.dropped += [name for name in state if not name.startswith("encoder.")]
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


def _build(
    content: Content, keywords: dict[str, Any], drop_path: float, pool: str, state: Mapping[str, Tensor]
) -> Classifier:
    """The model that the state is for, on the meta device: no time and memory for random weights."""
    has_head = "head.weight" in state
    prepared = {**content.facts.preprocessing, "image_size": tuple(keywords["image_size"])}
    try:
        with torch.device("meta"):
            return Classifier(
                image_encoder(**keywords, drop_path=drop_path),
                state["head.weight"].shape[0] if has_head else 0,
                pool=pool,
                fc_norm="fc_norm.weight" in state,
                labels=content.facts.labels if has_head else (),
                preprocessing=Preprocessing(**prepared),
            )
    except (TypeError, ValueError) as error:  # an option or a config that no model can have
        raise UserError(f"{content.name} can't be built: {error}") from None


def _refuse_nonfinite(content: Content) -> None:
    bad = [name for name, value in content.tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(
            f"{content.name} has NaN or infinite weights in {len(bad)} of {len(content.tensors)} tensors.\n"
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
