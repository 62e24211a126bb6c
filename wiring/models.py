"""The models that the options describe, and the preprocessing that new images need for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError
from vit.options import ModelOptions
from vit.terminal import say

if TYPE_CHECKING:
    from datamodules.splits import SplitLoaders
    from vit.models.classifier import Classifier, Preprocessing


CHANNELS = 3  # of photographs
RANDOM = "note: no checkpoint is given (--model.pretrained), so training starts from random weights"


def build_model(options: ModelOptions, seed: int) -> tuple[Classifier, list[str]]:
    """(The model that the options describe, from a checkpoint or new; lines to print about it).

    Raises:
        UserError: for a checkpoint that can't be loaded, or options that don't make a model.
    """
    import torch

    torch.manual_seed(seed)
    model, report = _loaded(options) if options.pretrained else (_new(options), [RANDOM])
    if options.crop_pct is not None:
        model.preprocessing = replace(model.preprocessing, resize_mode="crop", crop_pct=options.crop_pct)
    return model, report


def load_for_photographs(source: str, **options: Any) -> Classifier:
    """The model of a checkpoint, for photographs, which have three channels; a line is printed if it had others.

    Args:
        options: as `vit.checkpoints.load.load_with_report` takes them.

    Raises:
        UserError: for a checkpoint that can't be loaded, or not for three channels.
    """
    from vit.checkpoints.load import load_with_report

    model, report = load_with_report(source, in_chans=CHANNELS, **options)
    say(*(f"{source}: {text}" for text in report.resized if text.startswith("channels")))
    return model


def _loaded(options: ModelOptions) -> tuple[Classifier, list[str]]:
    from vit.checkpoints.load import load_with_report

    assert options.pretrained is not None
    model, report = load_with_report(
        options.pretrained, image_size=pair(options.image_size, "model.image_size"), patch_size=options.patch_size,
        trained_size=pair(options.trained_size, "model.trained_size"), in_chans=CHANNELS, pool=options.pool,
        pool_blocks=options.pool_blocks, drop_path=options.drop_path, **_unsaid(options),
    )  # fmt: skip
    notes = _overruled(options)
    if model.neighbours is not None:
        model.neighbours = None
        notes.append("note: the checkpoint's neighbours are left out: they were found for the model as it was")
    return model, [*report.lines(), *notes]


def _overruled(options: ModelOptions) -> list[str]:
    """Lines to print about options that are ignored because the checkpoint decides them."""
    if options.variant == ModelOptions().variant:
        return []
    return [f"note: --model.variant {options.variant} is ignored, because the checkpoint decides the model's size"]


def _new(options: ModelOptions) -> Classifier:
    from vit.models.classifier import Classifier
    from vit.models.encoder import image_encoder
    from vit.models.variants import variant

    keywords = variant(options.variant) | {name: value for name, value in _unsaid(options).items() if value is not None}
    encoder = image_encoder(
        image_size=pair(options.image_size, "model.image_size") or (224, 224), drop_path=options.drop_path,
        patch_size=(options.patch_size or 16,) * 2, **keywords,
    )  # fmt: skip
    try:
        return Classifier(encoder, 0, pool=options.pool or "class", pool_blocks=options.pool_blocks or 1)
    except ValueError as error:
        raise UserError(f"The --model.* options don't make a model: {error}.") from None


def _unsaid(options: ModelOptions) -> dict[str, Any]:
    """The options for what a checkpoint may not say."""
    return {name: getattr(options, name) for name in ("num_heads", "act", "norm_eps", "pos_interpolation")}


def pair(size: int | list[int] | None, option: str = "image_size") -> tuple[int, int] | None:
    """An image size as (height, width).

    Raises:
        UserError: unless it is one or two positive numbers, and not more pixels than a photograph may have.
    """
    if size is None:
        return None
    from datamodules.reading import MAX_PIXELS
    from vit.checkpoints import told

    sides = told.pair(f"--{option}", size)
    assert sides is not None
    if sides[0] * sides[1] > MAX_PIXELS:
        raise UserError(
            f"--{option} is {size}, which is more than the {MAX_PIXELS:,} pixels that an image may have.\n"
            "Give the side in pixels, such as 224; each doubling takes four times the memory."
        )
    return sides


def require_head(model: Classifier, source: str) -> None:
    """Raises UserError for a model that has no head with labels."""
    if model.labels:
        return
    if not model.num_classes:
        raise UserError(
            f"{source} has no head, so it can't name classes.\nTrain one: vit train --model.pretrained {source}."
        )
    raise UserError(
        f"{source} has a head of {model.num_classes} classes, but no labels, so it can't name them.\n"
        "Give a folder whose config.json has them beside the weights (timm: label_names, transformers: id2label), or\n"
        f"train a new head: vit train --model.pretrained {source}."
    )


def require_kind(model: Classifier, module: SplitLoaders, source: str) -> None:
    """Raises UserError for a model with one label per image and data with several, or the other way round."""
    if module.multilabel != model.multilabel:
        kinds = ("one label", "several labels")
        raise UserError(
            f"{source} gives {kinds[model.multilabel]} per image, but the data has {kinds[module.multilabel]}.\n"
            "A manifest with the column `labels` has several, one with the column `label` has one."
        )


def prepared_for(model: Classifier, *, crop: bool) -> Preprocessing:
    """The preprocessing of new images: the whole photo is squashed, so that the map covers every pixel, unless `crop`:
    then it is cropped as in evaluation, or to the central square where evaluation squashes."""
    if crop and model.preprocessing.resize_mode != "crop":
        return replace(model.preprocessing, resize_mode="crop", crop_pct=1.0)
    return model.preprocessing if crop else replace(model.preprocessing, resize_mode="squash")
