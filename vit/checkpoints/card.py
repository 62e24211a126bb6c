"""The model card: what a model was made of, how good it is, what it is not for, and how to load it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vit.models.captioner import Captioner
from vit.models.classifier import Classifier, Preprocessing


@dataclass(frozen=True)
class Training:
    """What a run knows about a model.

    Args:
        data: name of the data set, no path.
        images: how many of each split.
        classes: training images of each class, where they are known.
        start: the checkpoint that it began with, no path; empty for random weights.
        metrics: on the validation images: name -> value as people read it.
        epoch: that the weights are of, counted from 1.
    """

    data: str
    images: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    start: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    epoch: int | None = None


def model_card(
    model: Classifier,
    files: Mapping[str, str],
    ways: Mapping[str, str],
    *,
    training: Training | None = None,
    obstacles: Sequence[str] = (),
    exported: bool = False,
) -> str:
    """README.md of a folder with a model.

    Args:
        files: sha256 of each file of weights.
        ways: lines of Python that load the folder, by library; FOLDER in them stands for its path.
        obstacles: what keeps other libraries from loading it.
        exported: whether the folder is another library's, and so without the model's neighbours.
    """
    shape = model.encoder.architecture
    parameters = sum(weight.numel() for weight in model.parameters())
    patch = " x ".join(str(side) for side in dict.fromkeys(shape["patch_size"]))
    if model.multilabel:
        ways = {name: code.replace("logits.softmax(dim=1)", "logits.sigmoid()") for name, code in ways.items()}
    parts = [
        _HEADER,
        f"# Vision Transformer, {model.num_classes} classes" if model.num_classes else "# Vision Transformer",
        f"{shape['depth']} blocks of width {shape['embed_dim']} with {shape['num_heads']} heads, patches of {patch} "
        f"pixels, {parameters:,} parameters; the head reads {_READS[model.pool]}"
        + (f" of each of the last {model.pool_blocks} blocks." if model.pool_blocks > 1 else "."),
        _neighbours(model, exported),
        _data(training),
        _metrics(training),
        _input(model.preprocessing),
        _USE if model.num_classes else _USE_ENCODER,
        _loading(model, ways, obstacles),
        _labels(model, training),
        "## Files\n\n" + "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in files.items()),
        _LICENCE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def captioner_card(model: Captioner, files: Mapping[str, str], training: Training | None = None) -> str:
    """README.md of the model folder of a captioner; see `model_card`."""
    shape, words = model.encoder.architecture, model.decoder.architecture
    parameters = sum(weight.numel() for weight in model.parameters())
    parts = [
        _HEADER.replace("image-classification", "image-to-text"),
        "# Vision Transformer that captions",
        f"An encoder of {shape['depth']} blocks of width {shape['embed_dim']} and a decoder of {words['depth']} "
        f"blocks of width {words['embed_dim']}, {words['vocab_size']:,} words, {parameters:,} parameters; captions of "
        f"up to {words['max_tokens'] - 1} words.",
        _data(training),
        _metrics(training),
        _input(model.preprocessing),
        _CAPTIONS_USE,
        '## Load it\n\n```python\nimport vit\n\nmodel = vit.load("FOLDER").eval()\n```\n\n'
        "`vit predict FOLDER photos --out captions.csv` writes captions.",
        "## Files\n\n" + "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in files.items()),
        _LICENCE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEADER = """\
---
pipeline_tag: image-classification
tags:
- vision-transformer
- vitscope
---"""
_READS = {
    "class": "the class token",
    "mean": "the mean of the patches",
    "class+mean": "the class token beside the mean of the patches",
    "class+dist": "the class token and the distillation token",
    "attention": "what a learned query asks of the patches' tokens",
}
_USE = """\
## Intended use and limits

It sorts photographs like those that it was trained on into the classes below, and has no answer "none of these". Its
probabilities were learned from that data alone: on photographs of another kind (other cameras, places, seasons,
backgrounds) they may be confident and wrong, and what sets its classes apart may be what happened to stand beside
them. Measure it on your own photographs before you trust it (`vit evaluate`), and look at where it looked
(`vit explain`). It is not made for decisions about people."""
_USE_ENCODER = """\
## Intended use and limits

It is an encoder that was pretrained without labels, to be fine-tuned (`vit train --model.pretrained`): alone it names
nothing. What it is good for depends on how like your photographs are to those that it learned from."""
_CAPTIONS_USE = """\
## Intended use and limits

It says of photographs like those that it was trained on what captions like theirs would say, in their words alone: of
another kind of photograph it speaks as surely, and wrongly. Measure it on your own captions before you trust it
(`vit evaluate`), and look at where each word looked (`vit explain`). It is not made for decisions about people."""
_LICENCE = """\
## Licence

*Not stated: fill this in. What the checkpoint that it began with and the photographs allow counts, too.*"""


def _neighbours(model: Classifier, exported: bool) -> str:
    if model.neighbours is None:
        return ""
    if exported:
        return (
            "## Neighbours\n\nThe model that this was exported from also asks the training photographs that are "
            "nearest to an image. This is its network without them, whose predictions differ."
        )
    found = model.neighbours
    return (
        f"## Neighbours\n\nThe {found.voters} of {len(found.features):,} training photographs that are nearest to an "
        f"image by what the head reads have a share of {found.share:.0%} in its probabilities. Only vitscope keeps "
        "them; timm, transformers and torchvision load the network alone, whose predictions differ."
    )


def _data(training: Training | None) -> str:
    if training is None:
        return "## Data\n\n*Not stated: fill this in.*"
    images = ", ".join(f"{count:,} {split}" for split, count in training.images.items())
    start = f"the checkpoint `{training.start}`" if training.start else "random weights"
    return f"## Data\n\n`{training.data}`{f': images {images}' if images else ''}. The training began with {start}."


def _metrics(training: Training | None) -> str:
    if training is None or not training.metrics:
        return "## Metrics\n\n*Not stated: fill this in.*"
    rows = "\n".join(f"| {name} | {value} |" for name, value in training.metrics.items())
    of = "" if training.epoch is None else f", epoch {training.epoch} the best"
    return (
        f"## Metrics\n\nOn the validation images, by which the epoch was chosen{of}; expect less on new ones.\n\n"
        f"| metric | value |\n|---|---|\n{rows}"
    )


def _input(prepared: Preprocessing) -> str:
    height, width = prepared.image_size
    how = (
        f"the shorter side scaled so that a crop keeps {prepared.crop_pct:.1%} of it, then the centre"
        if prepared.resize_mode == "crop"
        else "the whole photo, each side scaled for itself"
    )
    return (
        f"## Input\n\nRGB of {height} x {width} pixels (height x width): {how}, {prepared.interpolation} with "
        f"antialias; values 0 to 1, less {_numbers(prepared.mean)}, divided by {_numbers(prepared.std)}."
    )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _loading(model: Classifier, ways: Mapping[str, str], obstacles: Sequence[str]) -> str:
    lines = ["## Load it", "`FOLDER` is the path of this folder."]
    if not model.num_classes:
        lines.append('The model has no head: `vit.load("FOLDER")` gives features.')
    else:
        lines += [f"With {library}:\n\n```python\n{code}```" for library, code in ways.items()]
    if obstacles:
        lines.append(f"vitscope alone loads it: timm and transformers have no place for {'; '.join(obstacles)}.")
    return "\n\n".join(lines)


def _labels(model: Classifier, training: Training | None) -> str:
    if not model.labels:
        return ""
    counts = training.classes if training else {}
    rows = [f"| {index} | {_cell(label)} | {counts.get(label, '')} |" for index, label in enumerate(model.labels)]
    return "## Classes\n\n| index | label | training images |\n|---|---|---|\n" + "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
