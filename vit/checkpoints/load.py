"""Load anything: read, recognise, rename, resize, merge strictly, report every key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.checkpoints import canonical
from vit.checkpoints.content import Content, read
from vit.checkpoints.sources import SOURCES, TIMM, Converted, Source, Tensors, locate
from vit.checkpoints.sources.timm_rotary import reorder
from vit.checkpoints.sources.unfit import refuse_gated_pool, refuse_twins, refuse_unfit
from vit.checkpoints.strict import match, refuse_nonfinite
from vit.checkpoints.told import Size, pair, reconciled
from vit.foundation import UserError
from vit.layers.patches import adapt_channels, resize_patches
from vit.layers.positions import resize_positions
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.models.neighbours import Neighbours

TOLD_BY_NAMES = ("attention", "class+dist")  # poolings with tensors of their own; others are guessed of a bare file


@dataclass
class LoadReport:
    """What happened to each key, and what was assumed because the file does not say it.

    Args:
        source: the checkpoint, as the user named it.
        layout: the library whose names its tensors have.
        file: the weight file, if there is one.
        tensors: number of its tensors.
        architecture: keywords of `image_encoder`, as far as they were found even if the checkpoint is refused.
        matched: how many of the model's tensors were found.
        resized, dropped, assumed, notes: texts about what was resized, left out, assumed, or is worth knowing.
        missing, unexpected, misshapen: names because of which it is refused.
        tells_preprocessing: whether it says how images are preprocessed; otherwise that is assumed as well.
    """

    source: str = ""
    layout: str = ""
    file: Path | None = None
    tensors: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)
    matched: int = 0
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    tells_preprocessing: bool = False

    def lines(self) -> list[str]:
        """The report as lines to print, one per subject."""
        lines = [f"{self.source}: {self.matched} tensors loaded, named as {self.layout} does"]
        subjects = {"resized": self.resized, "left out": self.dropped, "assumed": self.assumed, "note": self.notes}
        return lines + [f"  {name}: {', '.join(items)}" for name, items in subjects.items() if items]


def load(source: str | Path | nn.Module, **options: Any) -> Classifier:
    """The model of a checkpoint.

    A checkpoint is a file (.safetensors, .pth, .pt, .bin, .ckpt or .npz, or the index of several), a folder of our own,
    of timm or of transformers, `timm:NAME`, `hf:OWNER/NAME`, or a module in memory, of these libraries or torchvision.

    Options are those of `load_with_report`, which also says what happened to each key.

    Raises:
        UserError: when the checkpoint can't be read, or does not fit; says how many keys don't fit.
    """
    return load_with_report(source, **options)[0]


def load_with_report(
    source: str | Path | nn.Module,
    *,
    image_size: Size | None = None,
    patch_size: Size | None = None,
    trained_size: Size | None = None,
    in_chans: int | None = None,
    pool: str | None = None,
    pool_blocks: int | None = None,
    drop_path: float = 0.0,
    report: LoadReport | None = None,
    **architecture: Any,
) -> tuple[Classifier, LoadReport]:
    """As `load`.

    Args:
        image_size: pixels that the positions are resized to, one number or (height, width); None keeps them.
        patch_size: pixels that the projection of patches is resized to, as `image_size`; None keeps the checkpoint's.
        trained_size: pixels that the positions were learned for, as `image_size`, where the checkpoint does not say.
        in_chans: channels that it is adapted to, see `vit.layers.patches.adapt_channels`; None keeps them.
        pool: see `Classifier`; None keeps the checkpoint's, or takes "class" where there is a class token. The
            head of another pooling is left out, and so is one that reads what has no place here.
        pool_blocks: see `Classifier`, as `pool`.
        drop_path: see `Encoder`.
        report: filled in as the checkpoint is read: of one that is refused, it has what was found till then.
        architecture: `num_heads`, `act`, `norm_eps`, where the checkpoint does not say, and `pos_interpolation`.
    """
    report = LoadReport() if report is None else report
    image_size, patch_size = pair("image_size", image_size), pair("patch_size", patch_size)
    trained_size = pair("trained_size", trained_size)
    content = read(source)
    report.source, report.file, report.tensors = content.name, content.file, len(content.tensors)
    report.notes += content.facts.notes
    report.tells_preprocessing = bool(content.facts.preprocessing)
    origin, converted = _converted(content)
    report.layout = origin.name
    report.dropped += converted.left_out
    if pool is None:
        _refuse_head(content, converted)
    refuse_nonfinite(content.tensors, content.name)
    told = {name: value for name, value in architecture.items() if value is not None}
    told |= {"image_size": trained_size} if trained_size else {}
    if not content.facts.encoder and "post_norm" not in told:
        refuse_twins(converted.tensors)
    said = {**converted.known, **content.facts.encoder}
    report.notes += reconciled(told, said, content.name)
    known = {**said, **told}
    assumes = {**origin.assumes, **converted.assumed}
    keywords, assumed = canonical.architecture(converted.tensors, known, assumes, image_size=image_size)
    report.assumed, report.architecture = assumed, dict(keywords)
    grid = _trained_grid(keywords, known, trained_size, report)
    keywords["image_size"] = image_size or keywords["image_size"]
    tensors = reorder(converted.tensors, keywords["num_heads"], keywords.pop("rotary_order", ""))
    told_pool = content.facts.pool or converted.pool
    given_pool = told_pool or canonical.pooling(converted.tensors, pool)
    if not (pool or told_pool or given_pool in TOLD_BY_NAMES) and "head.weight" in converted.tensors:
        report.assumed.append(f"pool={given_pool}")
    state = canonical.to_ours(tensors, grid)
    blocks = pool_blocks or content.facts.pool_blocks
    if pool not in (None, given_pool) or blocks != content.facts.pool_blocks:
        state = _without_head(state, keywords, report)
    elif content.facts.pool not in (None, "attention"):
        _drop_attention_pool(state, report)
    elif origin is TIMM and not content.facts.encoder:
        refuse_gated_pool(tensors, keywords["mlp"])
    _fit_patches(state, keywords, patch_size, in_chans, report)
    prepared = _preprocessing(content, keywords, image_size)
    model = _build(content, keywords, drop_path, (pool or given_pool, blocks), state, prepared)
    _fit_positions(state, grid, model.encoder.grid, keywords["pos_interpolation"], report)
    # The weights of a live module stay its own.
    given = set() if content.file else {value.untyped_storage().data_ptr() for value in content.tensors.values()}
    _merge_strictly(model, state, report, given)
    _give_neighbours(model, content.neighbours, report)
    return model, report


def _trained_grid(
    keywords: Mapping[str, Any], known: Mapping[str, Any], told: tuple[int, int] | None, report: LoadReport
) -> tuple[int, int]:
    """The grid that the positions were learned for, and a note if it does not cover the images.

    Args:
        known: what is said of the images, by the checkpoint or the user.
        told: what the user says of them.

    Raises:
        UserError: when the user tells the size of another grid.
    """
    (patch_h, patch_w), (height, width) = keywords["patch_size"], keywords["image_size"]
    grid = (height // patch_h, width // patch_w)
    if told and (told_grid := (told[0] // patch_h, told[1] // patch_w)) != grid:
        raise UserError(
            f"trained_size is {told}, which is {told_grid[0]} x {told_grid[1]} patches, but the positions are not as\n"
            f"many: they may be those of {grid[0]} x {grid[1]}. Give the size that the checkpoint was trained with."
        )
    stated = tuple(known.get("image_size") or (height, width))
    if stated != (height, width):  # timm cuts off what is left
        text = "its images are of {} x {}, which the patches don't divide; here they are made {} x {}"
        report.notes.append(text.format(*stated, height, width))
    return grid


def _converted(content: Content) -> tuple[Source, Converted]:
    """The source of the tensors, and these in the canonical layout."""
    origin, tensors, beside = locate(content.tensors)
    if origin is None:
        refuse_unfit(content.tensors)
        raise UserError(
            f"{content.name} is not a Vision Transformer of a known kind; it has {len(content.tensors)} tensors.\n"
            f"Its first names are {', '.join(list(content.tensors)[:3])}.\n"
            f"Allowed are weights as {', '.join(source.name for source in SOURCES)} name them."
        )
    try:
        # Sums and resizing need more than half precision; tensors that are already float32 are not copied.
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        converted = origin.convert(tensors)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:  # tensors of shapes that the source never has
        raise UserError(f"{content.name} does not fit the layout of {origin.name}: {error!s:.200}") from None
    return origin, replace(converted, left_out=(*beside, *converted.left_out))


def _without_head(state: Tensors, keywords: dict[str, Any], report: LoadReport) -> Tensors:
    """The encoder's tensors: what another pooling gave the head to read is not what this head has learned.

    Where the norm stood behind the pooling, it becomes the encoder's, which had none: tokens without are far too large.
    """
    norm = state.get("fc_norm.weight")
    if not keywords["final_norm"] and norm is not None and norm.shape == (keywords["embed_dim"],):
        keywords["final_norm"] = True
        report.notes.append("fc_norm, which normed what the head read, is here the encoder's final norm")
        state = {
            f"encoder.norm.{name.removeprefix('fc_norm.')}" if name.startswith("fc_norm.") else name: value
            for name, value in state.items()
        }
    report.dropped += [name for name in state if not name.startswith("encoder.")]
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


def _drop_attention_pool(state: Tensors, report: LoadReport) -> None:
    """timm gives SigLIP's file, whose attention pool is in it, to its models that read the mean, too."""
    unused = [name for name in state if name.startswith("attn_pool.")]
    report.dropped += unused
    for name in unused:
        del state[name]


def _fit_patches(
    state: Tensors,
    keywords: dict[str, Any],
    patch_size: tuple[int, int] | None,
    in_chans: int | None,
    report: LoadReport,
) -> None:
    """Makes the projection of patches, and the keywords, those of another patch size and other channels."""
    name = "encoder.embed.patch_embed.proj.weight"
    old_size, colours = keywords["patch_size"], keywords["in_chans"]
    if patch_size is not None and patch_size != tuple(old_size):
        state[name] = resize_patches(state[name], patch_size)
        keywords["patch_size"] = patch_size
        sizes = f"{old_size[0]} x {old_size[1]} to {patch_size[0]} x {patch_size[1]}"
        report.resized.append(f"patches from {sizes} pixels by the pseudo-inverse of bicubic_antialias")
    if in_chans not in (None, colours):
        try:
            state[name] = adapt_channels(state[name], in_chans)
        except ValueError as error:
            raise UserError(f"{report.source} can't be loaded: {error}") from None
        keywords["in_chans"] = in_chans
        rule = "summed" if in_chans == 1 else f"taken in turn, times {colours}/{in_chans}"
        report.resized.append(f"channels from {colours} to {in_chans}, {rule}")


def _build(
    content: Content,
    keywords: dict[str, Any],
    drop_path: float,
    pool: tuple[str, int],
    state: Mapping[str, Tensor],
    prepared: Preprocessing,
) -> Classifier:
    """The model that the state is for, on the meta device, which saves time and memory for random weights."""
    has_head = "head.weight" in state
    try:
        with torch.device("meta"):
            return Classifier(
                image_encoder(**keywords, drop_path=drop_path),
                state["head.weight"].shape[0] if has_head else 0,
                pool=pool[0],
                pool_blocks=pool[1],
                fc_norm="fc_norm.weight" in state,
                labels=content.facts.labels if has_head else (),
                multilabel=has_head and content.facts.multilabel,
                preprocessing=prepared,
            )
    except (TypeError, ValueError) as error:  # an option or a config that no model can have
        raise UserError(f"{content.name} can't be built: {error}") from None


def _preprocessing(content: Content, keywords: dict[str, Any], asked: tuple[int, int] | None) -> Preprocessing:
    """As the source says, for the image size that is asked for, and with a mean and deviation for each channel.

    A source may prepare smaller images than its positions were learned for, as DINOv2's do: 224 pixels, not 518.
    """
    size = tuple(asked or content.facts.preprocessing.get("image_size") or keywords["image_size"])
    if any(side % patch for side, patch in zip(size, keywords["patch_size"], strict=True)):
        size = tuple(keywords["image_size"])
    try:
        prepared = Preprocessing(**{**content.facts.preprocessing, "image_size": size})
        means, deviations = (_for_channels(each, keywords["in_chans"]) for each in (prepared.mean, prepared.std))
        return replace(prepared, mean=means, std=deviations)
    except (TypeError, ValueError, ZeroDivisionError) as error:  # a config that no model can have
        raise UserError(f"{content.name} can't be built: {error}") from None


def _for_channels(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    """Means or deviations of colours for other channels: of one channel the average, of more the same in turn."""
    if len(values) == in_chans:
        return values
    if in_chans == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(in_chans))


def _refuse_head(content: Content, converted: Converted) -> None:
    """Raises UserError for a head that would have to be left out."""
    if converted.head_behind:
        raise UserError(
            f"{content.name}'s head reads {converted.head_behind}, which the models here have no place for.\n"
            "To leave the head out, give vit.load pool='class', or vit train --model.pool class for a new head."
        )


def _fit_positions(
    state: dict[str, Tensor],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    interpolation: str,
    report: LoadReport,
) -> None:
    name = "encoder.embed.pos_embed"
    if grid == new_grid or name not in state:
        return
    state[name] = resize_positions(state[name], grid, new_grid, interpolation)
    report.resized.append(f"positions from {grid[0]} x {grid[1]} to {new_grid[0]} x {new_grid[1]} by {interpolation}")


def _merge_strictly(model: Classifier, state: dict[str, Tensor], report: LoadReport, given: set[int]) -> None:
    found = match(model, state)
    report.matched, report.missing = found.matched, found.missing
    report.unexpected, report.misshapen = found.unexpected, found.misshapen
    found.require(report.source)
    model.load_state_dict({name: _own(value, given) for name, value in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _give_neighbours(model: Classifier, neighbours: Neighbours | None, report: LoadReport) -> None:
    """The checkpoint's neighbours for the model, unless its head was left out, which they vote beside.

    Raises:
        UserError: when they don't fit the head.
    """
    if neighbours is None:
        return
    if not model.num_classes:
        report.dropped.append("the nearest training photographs")
        return
    shape = (neighbours.features.shape[1], neighbours.targets.shape[1])
    if shape != (model.num_features, model.num_classes):
        raise UserError(
            f"{report.source} does not fit: its training photographs have {shape[0]} features and {shape[1]} classes,\n"
            f"its head {model.num_features} and {model.num_classes}. Copy the model folder again."
        )
    model.neighbours = neighbours


def _own(value: Tensor, given: set[int]) -> Tensor:
    """The value in float32 and in memory that nothing else uses; copied only if necessary.

    Args:
        given: addresses of memory that belongs to others; the memory of each returned weight is added.
    """
    value = value.float()
    storage = value.untyped_storage()
    if storage.data_ptr() in given or storage.nbytes() != value.nbytes or not value.is_contiguous():
        value = value.clone(memory_format=torch.contiguous_format)
    given.add(value.untyped_storage().data_ptr())
    return value
