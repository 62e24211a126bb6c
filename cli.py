"""The command `vit`: one plain typed function per verb. They parse, wire data to model, and delegate.

Slow imports (torch, lightning, timm) happen inside the verbs, so that `vit --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import vit
from vit.commandline import current_config, run_command
from vit.foundation import (
    UserError,
    check_range,
    claim_folder,
    keep_freed_memory,
)
from vit.options import (
    Activation,
    DataOptions,
    DecoderOptions,
    DecodingOptions,
    Device,
    ExplainTask,
    Method,
    ModelOptions,
    OptimOptions,
    PosInterpolation,
    Precision,
    PretrainOptions,
    RolloutOptions,
    Task,
    TrainerOptions,
    TrainingDataOptions,
)
from vit.terminal import (
    print_facts,
    print_lines,
    print_tables,
    say,
)
from wiring.caption_verbs import evaluate_captioner, predict_captions
from wiring.captioning import train_captioner
from wiring.checking import check_data
from wiring.classifier_verbs import evaluate_classifier, predict_labels
from wiring.data import check_reading, data_module
from wiring.explaining import (
    check_method,
    check_serves,
    check_settings,
    chosen_target,
    export_photographs,
    refuse_others,
)
from wiring.explaining_captions import CAPTION_OPTIONS, explain_captioner
from wiring.explaining_text import TEXT_OPTIONS, explain_texts
from wiring.folds import cross_validate
from wiring.models import load_for_photographs, pair
from wiring.pretraining import pretrain_encoder
from wiring.runs import RunOptions
from wiring.scoring import score_photographs
from wiring.training import train_classifier
from wiring.tuning import find_settings

DEMO_CHECKPOINT = Path(vit.__file__).parent / "assets" / "birdscenes"


def train(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    pretrain: PretrainOptions,
    decoder: DecoderOptions,
    *,
    run: str,
    task: Task = "classify",
    seed: int = 0,
    limit: int | None = None,
    folds: int | None = None,
    profile: bool = False,
    device: Device = "auto",
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Fine-tune a pretrained Vision Transformer, or train one from scratch.

    Example: vit train --config classify/finetune --data.root photos --model.pretrained vit.safetensors --run runs/birds

    Args:
        data: the photographs to learn from.
        model: the Vision Transformer.
        optim: optimizer settings.
        trainer: the length and the precision of the run.
        pretrain: what is hidden, for --task pretrain.
        decoder: the decoder that writes the captions, for --task caption.
        run: folder for checkpoints, curves and the finished model; refused when it already holds files.
        task: what to train: classify, pretrain (an encoder that reconstructs hidden patches; needs no labels), or
            caption (a model that writes a sentence for each image; needs images with captions).
        seed: seed of everything random in the run.
        limit: use at most this many images per split, for a quick look.
        folds: cross-validate: train this many times, each time holding out a different part of the train and val
            images.
        profile: print where the time went.
        device: auto uses a GPU if there is one.
        overwrite: write into a run folder that already holds files.
        resume: continue from the last checkpoint in the run folder.
    """
    options = RunOptions(
        run=Path(run), config=current_config() or "", seed=seed, limit=limit, profile=profile, device=device,
        overwrite=overwrite and not resume, resume=resume,  # the options that a run keeps may say both
    )  # fmt: skip
    if task != "caption" and decoder != DecoderOptions():
        raise UserError("The --decoder.* options need --task caption.")
    if task != "pretrain" and pretrain != PretrainOptions():
        raise UserError("The --pretrain.* options need --task pretrain.")
    if folds is not None:
        if task != "classify":
            raise UserError(f"--folds only works with --task classify, not with {task}.")
        cross_validate(data, model, optim, trainer, options, folds=folds)
    elif task == "pretrain":
        pretrain_encoder(data, model, optim, trainer, pretrain, options)
    elif task == "caption":
        train_captioner(data, model, optim, trainer, decoder, options)
    else:
        train_classifier(data, model, optim, trainer, options)


def evaluate(
    model: str,
    data: DataOptions,
    *,
    out: str,
    split: Literal["train", "val", "test"] = "val",
    limit: int | None = None,
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    tta: Literal["none", "flip", "crops"] = "none",
    seed: int = 0,
    precision: Precision = "fp32",
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Measure a model on a split: accuracy, calibration and confusions.

    For a captioner: perplexity, exact match, share of words right, BLEU and CIDEr.

    Example: vit evaluate runs/birds/model --data.root photos --split val --out runs/birds/val

    Args:
        model: a model folder or checkpoint.
        data: the photographs.
        out: folder for metrics.json, predictions.csv, confusion.png and reliability.png; for a captioner, metrics.json
            and captions.csv.
        split: which photographs.
        limit: use at most this many of them, for a quick look.
        decoding: how a captioner generates sentences.
        tta: test-time augmentation: average the probabilities over the image and its mirror image (flip), or over ten
            crops (crops).
        seed: seed of the run that trained the model; it decides the split of a root without val/.
        precision: precision of the forward pass.
        device: auto uses a GPU if there is one.
        overwrite: write into a folder that already holds files.
    """
    from vit.checkpoints.captioner import is_captioner

    if is_captioner(model):
        if tta != "none":
            raise UserError("--tta is for classifiers; this model is a captioner.\nLeave it out.")
        evaluate_captioner(model, data, decoding, out=out, split=split, limit=limit, seed=seed, precision=precision,
                           device=device, overwrite=overwrite)  # fmt: skip
        return
    evaluate_classifier(model, data, out=out, split=split, limit=limit, tta=tta, seed=seed, precision=precision,
                        device=device, overwrite=overwrite)  # fmt: skip


def predict(
    model: str,
    images: list[str],
    *,
    out: str,
    topk: int = 5,
    limit: int | None = None,
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = -1,
    crop: bool = False,
    precision: Precision = "fp32",
    device: Device = "auto",
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Write labels and probabilities of new images, or their captions, to a CSV.

    Images are cropped as in evaluation.

    Example: vit predict runs/birds/model photos/new --out labels.csv

    Args:
        model: a model folder or checkpoint.
        images: files, folders or globs.
        out: the CSV to write, one row per image: the image, its most likely label and its probability, then the next
            ones.
        topk: labels per image; a captioner writes one sentence instead.
        limit: use at most this many images, spread evenly over all of them, for a quick look.
        decoding: how a captioner generates sentences.
        seed: seed for sampling a caption's words.
        batch_size: images per forward pass.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        crop: use the central square of each photo, even if the model was evaluated on whole photos.
        precision: precision of the forward pass.
        device: auto uses a GPU if there is one.
        strict: stop at the first unreadable image; otherwise it is skipped and listed in skipped.csv.
        overwrite: overwrite an existing file.
    """
    from vit.checkpoints.captioner import is_captioner

    check_range("seed", seed, 0)
    if is_captioner(model):
        predict_captions(model, images, decoding, out=out, limit=limit, batch_size=batch_size,
                         num_workers=num_workers, precision=precision, device=device, strict=strict,
                         overwrite=overwrite, seed=seed)  # fmt: skip
        return
    predict_labels(model, images, out=out, topk=topk, limit=limit, batch_size=batch_size, num_workers=num_workers,
                   crop=crop, precision=precision, device=device, strict=strict, overwrite=overwrite)  # fmt: skip


def explain(
    model: str,
    images: list[str],
    *,
    out: str,
    task: ExplainTask = "image",
    word: str | None = None,
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    method: Method = "default",
    target: str = "predicted",
    rollout: RolloutOptions = RolloutOptions(),  # noqa: B008 (frozen)
    start_block: int = 0,
    refine: bool = False,
    format: Literal["npy", "npz", "tiff", "png16"] = "npy",
    full: bool = False,
    colormap: Literal["inferno", "magma", "viridis", "cividis"] = "inferno",
    opacity: float = 0.6,
    layout: Literal["side_by_side", "over"] = "side_by_side",
    gallery: bool = False,
    scores: str | None = None,
    crop: bool = False,
    image_size: int | list[int] | None = None,
    pos_interpolation: PosInterpolation | None = None,
    trained_size: int | list[int] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    num_workers: int = -1,
    precision: Precision = "fp32",
    device: Device = "auto",
    strict: bool = False,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Write saliency maps of images, with overlays and a contact sheet.

    Example: vit explain runs/birds/model photos/new --out maps

    Args:
        model: a model folder or checkpoint.
        images: files, folders or globs. A folder named after one of the model's labels gives the true class of its
            images. With --task text, sentences in quotes.
        out: folder for the maps; it mirrors the tree of the images.
        task: image; text (which words each word attends to; the model is a folder with a BERT and its tokenizer); or
            caption (where each word of the generated sentence looked). A captioner is always explained as caption.
        word: the word to draw, for --task text; default: all of them.
        decoding: how a captioner generates sentences.
        method: how the maps are computed; default is the one that measured best, see the table in docs/saliency.md.
        target: the class to explain: predicted, a label, the index of a class, topk:K (the K likeliest classes, one
            map for each), or FILE.csv:COLUMN.
        rollout: settings of --method rollout.
        start_block: the first block to take into account, for methods that go through the blocks; they are counted
            from 0, so of 12 blocks, 10 keeps the last two.
        refine: average the map over patches with similar keys.
        format: format of the raw maps: float32 as .npy, .npz or .tiff, or 16-bit .map.png, scaled from each map's
            minimum to its maximum.
        full: also write each map at the photo's own resolution, as NAME.full.npy.
        colormap: colours of the overlays; all of them are perceptually uniform.
        opacity: opacity of the map over the photo, 0 to 1.
        layout: layout of the overlays: side_by_side (the photo, and the map over it) or over (only the latter).
        gallery: also write gallery.html, a page of all maps to sort, filter and browse.
        scores: a scores.csv written by vit score, to show in the gallery.
        crop: crop as the model was evaluated (to the central square if it was evaluated on whole photos). Without it
            the whole photo is resized, so label and probability may differ from those of predict and evaluate, which
            crop as the model was evaluated.
        image_size: size in pixels that the photos are resized to, one number or [height, width]; default: the
            checkpoint's.
        pos_interpolation: how positions are resized to another grid, if the checkpoint does not say.
        trained_size: image size in pixels that the checkpoint was trained with, if it does not say; one number or
            [height, width].
        limit: use at most this many images, spread evenly over all of them, for a quick look.
        batch_size: images per forward pass.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        precision: precision of the forward pass.
        device: auto uses a GPU if there is one.
        strict: stop at the first unreadable image; otherwise it is skipped and listed in skipped.csv.
        overwrite: write into a folder that already holds files.
        resume: continue an interrupted export with the same model and options.
    """
    given = dict(locals())
    from datamodules.image_files import list_images
    from vit import processes
    from vit.checkpoints.captioner import is_captioner
    from vit.inference import choose_device
    from vit.saliency.export import ExportOptions

    if task == "text":
        refuse_others(explain, given, TEXT_OPTIONS, "--task text")
        explain_texts(model, images, out=out, word=word, method=method, start_block=start_block, device=device,
                      overwrite=overwrite)  # fmt: skip
        return
    if task == "caption" or is_captioner(model):
        refuse_others(explain, given, CAPTION_OPTIONS, "a captioner")
        explain_captioner(model, images, decoding, out=out, method=method, start_block=start_block, colormap=colormap,
                          opacity=opacity, limit=limit, batch_size=batch_size, num_workers=num_workers, device=device,
                          strict=strict, overwrite=overwrite)  # fmt: skip
        return
    if word is not None:
        raise UserError("--word needs --task text.")
    check_reading(batch_size, num_workers)
    check_range("opacity", opacity, 0, 1)
    if resume and overwrite:
        raise UserError("--resume keeps the existing files, and --overwrite does not.\nGive one of the two.")
    if scores is not None and not gallery:
        raise UserError("--scores needs --gallery.")
    processes.join()
    place = choose_device(device)
    network = load_for_photographs(
        model, image_size=pair(image_size), pos_interpolation=pos_interpolation,
        trained_size=pair(trained_size, "trained_size"),
    )  # fmt: skip
    check_method(method, network, model, start_block, rollout)
    options = ExportOptions(
        method=method,
        target=chosen_target(target, method, network),
        start_block=start_block,
        refine=refine,
        method_options=asdict(rollout) if method == "rollout" else {},
        precision=precision,
        form=format,
        full=full,
        colormap=colormap,
        opacity=opacity,
        layout=layout,
        gallery=gallery,
    )
    export_photographs(
        network, list_images(images, limit=limit, elsewhere=[out]), options, out=Path(out), device=place, crop=crop,
        scores=scores, batch_size=batch_size, num_workers=num_workers, strict=strict, overwrite=overwrite,
        resume=resume,
    )  # fmt: skip


def score(
    model: str,
    images: list[str],
    *,
    out: str,
    masks: str | None = None,
    methods: str = "default",
    rollout: RolloutOptions = RolloutOptions(),  # noqa: B008 (frozen)
    start_block: int = 0,
    refine: bool = False,
    metrics: Literal["all", "localization", "faithfulness"] = "all",
    fill: Literal["paper", "zero", "mean", "blur"] = "paper",
    image_size: int | list[int] | None = None,
    pos_interpolation: PosInterpolation | None = None,
    trained_size: int | list[int] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    num_workers: int = -1,
    precision: Precision = "fp32",
    device: Device = "auto",
    seed: int = 0,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Measure saliency maps against masks and against the model itself.

    Example: vit score runs/birds/model photos/val --masks masks --methods rollout,attribution --out scores

    Args:
        model: a model folder or checkpoint.
        images: files, folders or globs. A folder named after one of the model's labels gives the true class of its
            images.
        out: folder for scores.json, scores.csv and best_worst.png.
        masks: a folder of mask images, or a CSV with the columns image and mask, or image, x0, y0, x1 and y1; it may
            also have label and group.
        methods: names as of `vit explain --method`, separated by commas; the baselines centre and random are always
            scored, too.
        rollout: settings of the method rollout.
        start_block: the first block to take into account, for those methods that go through the blocks; they are
            counted from 0, so of 12 blocks, 10 keeps the last two.
        refine: average the maps of these methods over patches with similar keys.
        metrics: localization needs masks; faithfulness needs a classifier head and about 60 forward passes per map; all
            measures whichever of the two is possible.
        fill: what replaces removed pixels; paper uses the fill from each metric's paper.
        image_size: size in pixels that the photos are resized to, one number or [height, width]; default: the
            checkpoint's.
        pos_interpolation: how positions are resized to another grid, if the checkpoint does not say.
        trained_size: image size in pixels that the checkpoint was trained with, if it does not say; one number or
            [height, width].
        limit: use at most this many images, spread evenly over all of them, for a quick look.
        batch_size: images per forward pass.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        precision: precision of the forward pass.
        device: auto uses a GPU if there is one.
        seed: seed of the resampling behind the confidence intervals.
        strict: stop at the first image that can't be read or has no mask; otherwise it is skipped and listed in
            skipped.csv.
        overwrite: write into a folder that already holds files.
    """
    from datamodules.image_files import list_images
    from vit import processes
    from vit.inference import choose_device
    from vit.saliency.score import chosen_methods

    processes.refuse_several("vit score")
    check_reading(batch_size, num_workers)
    check_range("seed", seed, 0)
    asked = chosen_methods(methods)
    place = choose_device(device)
    network = load_for_photographs(
        model, image_size=pair(image_size), pos_interpolation=pos_interpolation,
        trained_size=pair(trained_size, "trained_size"),
    )  # fmt: skip
    for method in asked:
        check_serves(method, network, model, "--methods default,rollout")
    check_settings(asked, network, start_block, rollout, option="--methods")
    if metrics == "localization" and masks is None:
        raise UserError("--metrics localization needs --masks: a folder of mask images, or a CSV.")
    if network.num_classes == 0 and (masks is None or metrics == "faithfulness"):
        raise UserError(
            f"{model} has no classifier head, so its maps can only be scored against masks.\n"
            "Give --masks, and not --metrics faithfulness."
        )
    score_photographs(
        network, list_images(images, limit=limit), asked, source=model, out=out, masks=masks, refine=refine,
        start_block=start_block, rollout=rollout, metrics=metrics, fill=fill, device=place, precision=precision,
        seed=seed, batch_size=batch_size, num_workers=num_workers, strict=strict, overwrite=overwrite,
    )  # fmt: skip


def info(
    model: str,
    *,
    image_size: int | list[int] | None = None,
    classes: int | None = None,
    num_heads: int | None = None,
    act: Activation | None = None,
    norm_eps: float | None = None,
    pos_interpolation: PosInterpolation | None = None,
    trained_size: int | list[int] | None = None,
) -> None:
    """Show what is in a checkpoint and whether it can be loaded.

    Example: vit info vit.safetensors --image_size 112 --classes 27

    Args:
        model: a model folder or checkpoint.
        image_size: image size in pixels to load it for, one number or [height, width]; default: the checkpoint's.
        classes: number of classes to train it on; shows whether its head would be kept.
        num_heads: attention heads, if the checkpoint does not say.
        act: activation of the MLPs, if the checkpoint does not say.
        norm_eps: epsilon of the norms, if the checkpoint does not say.
        pos_interpolation: how positions are resized to another grid, if the checkpoint does not say.
        trained_size: image size in pixels that the checkpoint was trained with, if it does not say; one number or
            [height, width].
    """
    from vit.checkpoints.captioner import captioner_facts, is_captioner
    from vit.checkpoints.inspection import inspect

    if is_captioner(model):
        print_facts(captioner_facts(model))
        return
    if classes is not None:
        check_range("classes", classes, 1)
    unsaid = {"num_heads": num_heads, "act": act, "norm_eps": norm_eps, "pos_interpolation": pos_interpolation}
    learned_for = pair(trained_size, "trained_size")
    found = inspect(model, image_size=pair(image_size), classes=classes, trained_size=learned_for, **unsaid)
    print_facts(found.rows)
    if found.refusal:
        raise found.refusal


def export(
    model: str,
    *,
    to: Literal["timm", "transformers", "torchvision"],
    out: str,
    image_size: int | list[int] | None = None,
    num_heads: int | None = None,
    act: Activation | None = None,
    norm_eps: float | None = None,
    pos_interpolation: PosInterpolation | None = None,
    trained_size: int | list[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a model so that another library loads it without this one.

    Example: vit export runs/birds/model --to transformers --out birds_hf

    Args:
        model: a model folder or checkpoint.
        to: the library. If it can't represent the model, the command says why and writes nothing.
        out: folder for the weights, the config, and a README.md with the code that loads them.
        image_size: image size in pixels to convert it for, one number or [height, width]; default: the checkpoint's.
        num_heads: attention heads, if the checkpoint does not say.
        act: activation of the MLPs, if the checkpoint does not say.
        norm_eps: epsilon of the norms, if the checkpoint does not say.
        pos_interpolation: how positions are resized to another grid, if the checkpoint does not say.
        trained_size: image size in pixels that the checkpoint was trained with, if it does not say; one number or
            [height, width].
        overwrite: write into a folder that already holds files.
    """
    from vit.checkpoints.export import check_target
    from vit.checkpoints.export import export as write_export
    from vit.checkpoints.load import load

    unsaid = {"num_heads": num_heads, "act": act, "norm_eps": norm_eps, "pos_interpolation": pos_interpolation}
    network = load(model, image_size=pair(image_size), trained_size=pair(trained_size, "trained_size"), **unsaid)
    check_target(network, to)  # before there is a folder
    folder = claim_folder(out, overwrite=overwrite)
    written = write_export(network, to, folder)
    if network.neighbours is not None:
        say(f"note: {to} has no place for the nearest training photographs: its predictions are the head's alone")
    say(f"written to {folder}: {', '.join(written)}")


def tune(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    *,
    out: str = "tune",
    find: Literal["all", "lr", "batch_size"] = "all",
    steps: int = 100,
    seed: int = 0,
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Find a learning rate and a batch size to start with.

    Example: vit tune --config classify/finetune --data.root photos --model.pretrained vit.safetensors

    Args:
        data: the photographs to learn from.
        model: the Vision Transformer.
        optim: optimizer settings; the ratios between the layers' learning rates are kept.
        trainer: the precision of the run.
        out: folder for lr.png, a plot of the loss against the rising learning rate.
        find: what to look for.
        steps: training steps over which the learning rate rises, 10 or more.
        seed: seed of everything random in the trials.
        device: auto uses a GPU if there is one.
        overwrite: write into a folder that already holds files.
    """
    from vit import processes

    processes.refuse_several("vit tune")
    check_range("steps", steps, 10)
    find_settings(data, model, optim, trainer, find=find, out=Path(out), steps=steps, seed=seed, device=device,
                  overwrite=overwrite)  # fmt: skip


def runs(folders: list[str]) -> None:
    """Compare runs: recipe, accuracy, speed and differing options.

    Example: vit runs runs/birds runs/probe

    Args:
        folders: run folders, or folders with runs below them, such as those of --folds.
    """
    from vit.training.runs import find_runs, read_runs, run_table

    found, wrong = read_runs(find_runs(folders))
    say(*wrong)
    print_tables([run_table(found)])


def check(
    data: str,
    model: ModelOptions,
    *,
    out: str = "check",
    fix_list: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    batch_size: int = 32,
    max_epochs: int = 10,
    num_workers: int = -1,
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Check a data set for problems before you spend hours training on it.

    Example: vit check photos --out check --fix_list good.csv

    Args:
        data: the folder or manifest that training would get as --data.root.
        model: the model to train, for an estimate of time and memory.
        out: folder for report.html and problems.csv.
        fix_list: a CSV to write with the images that have no serious problem; it can be used as --data.root.
        val_fraction: share of each class held out for validation, 0 to 1, if the data has no val.
        seed: seed of the training run; it decides which images are held out.
        batch_size: images per step, for the estimate.
        max_epochs: passes over the training images, for the estimate.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        device: the device to train on; auto uses a GPU if there is one.
        overwrite: overwrite existing files.
    """
    check_data(data, model, out=out, fix_list=fix_list, val_fraction=val_fraction, seed=seed, batch_size=batch_size,
               max_epochs=max_epochs, num_workers=num_workers, device=device, overwrite=overwrite)  # fmt: skip


def demo(*, out: str = "demo", seed: int = 0, device: Device = "auto", overwrite: bool = False) -> None:
    """Try everything on generated scenes, offline, in a few minutes.

    Example: vit demo --out demo

    Args:
        out: folder for the run, the scenes and the maps.
        seed: seed of everything random.
        device: auto uses a GPU if there is one.
        overwrite: write into a folder that already holds files.
    """
    from datamodules.birdscenes import write_scenes
    from vit.checkpoints.load import load
    from vit.inference import choose_device
    from vit.saliency.score import Scorer
    from vit.saliency.score_report import class_lines, score_tables, summarise

    folder = claim_folder(out, overwrite=overwrite)
    model, common = str(folder / "run" / "model"), ["--seed", str(seed), "--device", device, "--overwrite"]
    data = ["--data.root", "birdscenes:demo"]
    step("Fine-tune a small Vision Transformer, pretrained on other species, on eight new ones.")
    type_command("train", "--config", "demo/finetune", "--model.pretrained", str(DEMO_CHECKPOINT),
                 "--run", str(folder / "run"), *common)  # fmt: skip
    step("How good is it on scenes it has never seen?")
    type_command("evaluate", model, *data, "--split", "test", "--out", str(folder / "test"), *common)
    step("Where did it look?")
    write_scenes(folder / "scenes", 24, seed=seed + 1)
    type_command(
        "explain",
        model,
        str(folder / "scenes"),
        "--out",
        str(folder / "maps"),
        "--method",
        "rollout",  # which the next step scores
        "--device",
        device,
        "--overwrite",
    )
    step("Do the maps hit the birds? Averages over the unseen scenes:")
    network = load(model)
    module = data_module(DataOptions(root="birdscenes:demo"), network, seed=seed, labels=network.labels)
    scorer = Scorer(network, ["rollout"], device=choose_device(device))
    for batch in module.dataloader("test"):
        scorer.add(batch)
    summary = summarise(scorer.scores(), seed=seed)
    print_tables(score_tables(summary))
    print_lines(class_lines(summary))
    say(
        "",
        f"curves             {folder / 'run' / 'curves.png'}",
        f"confusions         {folder / 'test' / 'confusion.png'}",
        f"where it looked    {folder / 'maps' / 'contact_sheet.png'}",
    )


def step(text: str) -> None:
    """Prints a heading of the demo."""
    say("", text)


def type_command(*words: str) -> None:
    """Runs a command as if it had been typed, and shows it."""
    say("  $ vit " + " ".join(words), "")
    if code := run_command(VERBS, list(words)):
        raise UserError(f"The demo stops: `vit {words[0]}` ended with exit code {code}.")


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "score": score,
    "info": info,
    "export": export,
    "tune": tune,
    "runs": runs,
    "check": check,
    "demo": demo,
}


def refuse_unreachable(options: dict[str, Any]) -> None:
    """Raises UserError for a hub model that can't be downloaded, before the verb spends seconds on imports."""
    model = options.get("model")
    name = getattr(model, "pretrained", model)
    if isinstance(name, str) and name.startswith(("timm:", "hf:")):
        from vit.checkpoints import hub

        hub.refuse_unreachable(name)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    keep_freed_memory()
    return run_command(VERBS, sys.argv[1:] if arguments is None else arguments, refuse_unreachable)


if __name__ == "__main__":
    sys.exit(main())
