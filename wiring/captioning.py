"""Captioning: data with captions, the captioner that the options describe, and its run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from vit.foundation import UserError, check_range
from vit.options import (
    DataOptions,
    DecoderOptions,
    ModelOptions,
    OptimOptions,
    TrainerOptions,
    TrainingDataOptions,
)
from vit.terminal import say
from wiring.data import describe_data
from wiring.models import build_model, pair
from wiring.runs import RunOptions, check_run, open_run, refuse_classification, refuse_unfit_fsdp, run_task

if TYPE_CHECKING:
    from datamodules.captioned_scenes import BirdSceneCaptions
    from datamodules.captions_csv import CaptionsCsv
    from datamodules.vocabulary import Vocabulary
    from vit.models.captioner import Captioner
    from vit.models.classifier import Preprocessing
    from vit.training.fit import FitResult

_SPARE_TOKENS = 8  # places of the decoder beyond the longest caption of the data


def train_captioner(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    decoder: DecoderOptions,
    options: RunOptions,
) -> FitResult:
    """Trains a captioner into the run folder, and prints how it went.

    Raises:
        UserError: for options, a model or data that can't be used, or when the run fails.
    """
    from vit.training.captioning import CaptioningTask

    refuse_classification(data, optim, takes="label_smoothing")
    check_run(options, trainer, model.pretrained)
    refuse_unfit_fsdp(trainer, optim, classifies=False)
    network, module, report = build_captioner(data, model, decoder, options.seed, options.limit)
    if not module.length("val"):
        raise UserError(f"{data.root} has only one image, so none is left for validation.\nGive two or more.")
    open_run(options)
    say(*report)
    task = CaptioningTask(
        network,
        seed=options.seed,
        names=module.names("train"),
        data=module.fingerprint(),
        skip_bad_steps=trainer.skip_bad_steps,
        label_smoothing=optim.label_smoothing,
        **optim.movement(),
    )
    about = describe_data(data, module, model.pretrained)
    return run_task(task, module, options, optim, trainer, about)


def build_captioner(
    data: TrainingDataOptions, model: ModelOptions, decoder: DecoderOptions, seed: int, limit: int | None
) -> tuple[Captioner, BirdSceneCaptions | CaptionsCsv, list[str]]:
    """(The captioner, its data, lines to print): a captioner's checkpoint as it is, or the encoder of any other model
    with a new decoder.

    Raises:
        UserError: for options that contradict a captioner's checkpoint, a vocabulary, data or a checkpoint that can't
            be used, or heads that do not divide the decoder's width.
    """
    import torch

    from datamodules.vocabulary import Vocabulary
    from vit.checkpoints.captioner import is_captioner, load_captioner
    from vit.models.captioner import Captioner
    from vit.models.decoder import Decoder

    words = None if decoder.vocabulary is None else Vocabulary.read(decoder.vocabulary)
    if model.pretrained and is_captioner(model.pretrained):
        if words is not None or pair(model.image_size, "model.image_size") is not None or model.crop_pct is not None:
            raise UserError(
                f"{model.pretrained} is a captioner: it keeps its own vocabulary, image size and crop.\n"
                "Leave out --decoder.vocabulary, --model.image_size and --model.crop_pct."
            )
        known = load_captioner(model.pretrained)
        module = caption_data(data, known.preprocessing, Vocabulary.from_json(known.tokenizer), seed=seed, limit=limit)
        refuse_longer(module.longest, known, data.root)
        return known, module, [f"{model.pretrained}: a captioner of {len(module.vocabulary)} words"]
    network, report = build_model(model, seed)
    if data.root.startswith("birdscenes:"):  # what a caption names must not be cropped away
        if model.crop_pct is not None:
            raise UserError("--model.crop_pct is for photographs: captions of generated scenes describe whole scenes.")
        network.preprocessing = replace(network.preprocessing, resize_mode="squash", crop_pct=1.0)
    module = caption_data(data, network.preprocessing, words, seed=seed, max_words=decoder.max_words, limit=limit)
    words = module.vocabulary
    torch.manual_seed(seed)
    try:
        speaker = Decoder(
            len(words), module.longest + _SPARE_TOKENS, network.encoder.embed_dim, decoder.depth, decoder.num_heads,
            mlp_ratio=decoder.mlp_ratio, post_norm=decoder.post_norm,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"The --decoder.* options don't fit the encoder: {error}.") from None
    captioner = Captioner(
        network.encoder, speaker, start=words.start, end=words.end, pad=words.pad, tokenizer=words.json,
        preprocessing=network.preprocessing,
    )  # fmt: skip
    return captioner, module, [*report, f"new decoder of {decoder.depth} blocks for {len(words)} words"]


def refuse_longer(longest: int, network: Captioner, root: str) -> None:
    """Raises UserError for captions that are longer than the model can write."""
    if longest - 1 > network.decoder.max_tokens:
        raise UserError(
            f"{root} has a caption of {longest - 2} words; this model can write {network.decoder.max_tokens - 1}.\n"
            "Shorten it, or train a captioner from an encoder: its decoder is made for the captions of its data."
        )


def caption_data(
    options: DataOptions,
    prepared: Preprocessing,
    vocabulary: Vocabulary | None,
    *,
    seed: int,
    max_words: int = 8192,
    limit: int | None = None,
) -> BirdSceneCaptions | CaptionsCsv:
    """The data module of `--data.root` for captions, preprocessed as a model needs it.

    Args:
        vocabulary: None makes one from all captions, whatever the limit.
        max_words: maximum size of a vocabulary made here.
        limit: maximum number of images per split; None for all.

    Raises:
        UserError: for a root that is missing or can't be used, a negative seed, or --data.confound.
    """
    from datamodules.captioned_scenes import BirdSceneCaptions
    from datamodules.captions_csv import CaptionsCsv

    check_range("seed", seed, 0)
    if not options.root:
        raise UserError("--data.root is missing: give a CSV with the columns image,caption, or birdscenes:demo.")
    keywords = asdict(options) | {
        "image_size": prepared.image_size,
        "mean": prepared.mean,
        "std": prepared.std,
        "vocabulary": vocabulary,
        "seed": seed,
    }
    root = keywords.pop("root")
    scenes = {name: keywords.pop(name) for name in ("train_scenes", "val_scenes", "confound") if name in keywords}
    keywords.pop("balanced", None)
    if scenes.pop("confound", 0):
        raise UserError("--data.confound is for classification: captions have no classes.")
    module: BirdSceneCaptions | CaptionsCsv
    if root.startswith("birdscenes:"):
        for unused in ("val_fraction", "strict", "crop_scale", "hflip", "cache", "cache_gb"):
            keywords.pop(unused, None)
        module = BirdSceneCaptions(root.removeprefix("birdscenes:"), **scenes, **keywords)
    else:
        if keywords.get("hflip"):
            say("note: captions that say left or right are wrong for mirrored photos; --data.hflip 0 mirrors none")
        keywords |= {
            "interpolation": prepared.interpolation,
            "resize_mode": prepared.resize_mode,
            "crop_pct": prepared.crop_pct,
        }
        module = CaptionsCsv(root, max_words=max_words, **keywords)
    if limit is not None:
        module.limit(limit)
    return module
