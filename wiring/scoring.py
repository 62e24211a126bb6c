"""Scores of saliency maps, from photographs and masks to scores.json, scores.csv and best_worst.png."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, claim_folder, nearest, none_read
from vit.terminal import print_lines, print_tables, progress, say, tell_skipped
from wiring.explaining import settings_of
from wiring.models import prepared_for

if TYPE_CHECKING:
    import torch

    from datamodules.image_files import ImageFile
    from datamodules.masks import Annotation, MarkedImages
    from vit.models.classifier import Classifier
    from vit.options import Precision, RolloutOptions
    from vit.saliency.faithfulness import Fill


def score_photographs(
    network: Classifier,
    files: list[ImageFile],
    methods: list[str],
    *,
    source: str,
    out: str,
    masks: str | None,
    refine: bool,
    start_block: int,
    rollout: RolloutOptions,
    metrics: str,
    fill: Fill,
    device: torch.device,
    precision: Precision,
    seed: int,
    batch_size: int,
    num_workers: int,
    strict: bool,
    overwrite: bool,
) -> None:
    """Scores the maps of each method against masks, if given, and against the model itself, and writes and prints the
    results.

    Raises:
        UserError: a fill without faithfulness metrics, masks that can't be used, an output folder that can't be written
            to, or images of which none can be read.
    """
    from datamodules.masks import find_annotations, labels_and_groups
    from datamodules.reading import printable
    from vit.saliency.score import Scorer
    from vit.saliency.score_report import class_lines, score_tables, summarise, write_scores

    faithful = network.num_classes > 0 and metrics != "localization"
    if fill != "paper" and not faithful:
        raise UserError(
            "--fill only affects the faithfulness metrics, which need a classifier head and --metrics all or "
            f"faithfulness.\nLeave --fill {fill} out."
        )
    known = None if masks is None else find_annotations(masks, files)
    labels, groups = labels_and_groups(files, known)
    truths = [network.labels.index(label) if label in network.labels else -1 for label in labels]
    if known is not None:
        truths = _said_truths(network, files, known, truths)
    folder = claim_folder(out, overwrite=overwrite)
    scorer = Scorer(
        network, methods, device=device, precision=precision,
        faithfulness=fill if faithful else None,
        truths_known=min(truths) >= 0, method_options={
            method: {"refine": refine, **settings_of(method, start_block, rollout)} for method in methods
        },
    )  # fmt: skip
    dataset = _marked_images(network, files, known if metrics != "faithfulness" else None, truths)
    loader = dataset.loader(batch_size, num_workers, strict=strict)
    skipped: dict[str, str] = {}
    for batch in progress(loader, "scoring", len(files), lambda batch: len(batch["index"])):
        scorer.add(batch)
        skipped.update(batch["skipped"])
    tell_skipped(skipped, folder, how="were left out; the reasons are")
    if len(skipped) == len(files):
        raise none_read(f"{len(files)} images", skipped, "scored")
    scores = scorer.scores()
    summary = summarise(scores, groups=groups, seed=seed)
    settings = {"model": printable(source), "masks": masks and printable(masks), "refine": refine,
                "start_block": start_block, "rollout": asdict(rollout), "fill": scorer.faithfulness,
                "accuracy_of": scorer.accuracy_of, "skipped": len(skipped)}  # fmt: skip
    names = [printable(file.relative) for file in files]
    pictures = folder / "best_worst.png"
    pictures.unlink(missing_ok=True)  # from an older run; with only baselines none are drawn
    write_scores(scores, summary, names, folder, groups=groups, settings=settings)
    print_tables(score_tables(summary))
    print_lines(class_lines(summary))
    written = "scores.json, scores.csv and best_worst.png" if pictures.exists() else "scores.json and scores.csv"
    say(f"{len(scores.index)} images: {written} in {folder}")


def _said_truths(
    network: Classifier, files: list[ImageFile], known: list[Annotation | None], truths: list[int]
) -> list[int]:
    """The true classes; where the masks' column `label` names a label of the model, or its index, that one counts.

    A note is printed about labels there that the model does not have, as masks of many things may well have some.
    Folder names need not be labels.
    """
    from vit.saliency.targets import class_index

    found, strange = list(truths), []
    for place, each in enumerate(known):
        if each is not None and each.label:
            index = class_index(each.label, network.labels, network.num_classes)
            found[place] = -1 if index is None else index
            strange += [] if index is not None else [each.label]
    if strange and network.labels:
        say(f"{len(strange)} of {len(files)} images have labels that the model does not have, such as {strange[0]!r}"
            f"{nearest(strange[0], network.labels)}: their true class counts as unknown")  # fmt: skip
    return found


def _marked_images(network: Classifier, files: list[ImageFile], known: Any, truths: list[int]) -> MarkedImages:
    from datamodules.masks import MarkedImages
    from vit.saliency.score_report import PHOTO_SIDE

    keywords = asdict(prepared_for(network, crop=False))
    return MarkedImages(files, known, truths, keywords.pop("image_size"), keywords.pop("mean"), keywords.pop("std"),
                        photo_side=PHOTO_SIDE, **keywords)  # fmt: skip
