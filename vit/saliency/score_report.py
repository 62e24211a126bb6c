"""Summaries of the scores of many images: means with intervals, words, tables, files and a picture."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.foundation import atomic_write
from vit.saliency.background import FEWEST, Verdict, verdict
from vit.saliency.faithfulness import STEPS
from vit.saliency.intervals import LEVEL, RESAMPLES, Estimate, Interval, bootstrap
from vit.saliency.render import contact_sheet, overlay, save_overlay
from vit.saliency.score import BASELINES, FAITHFULNESS, LOCALIZATION, LOWER_IS_BETTER, Scores

TITLES = {
    "pointing_game": "pointing\ngame",
    "energy_inside": "energy\ninside",
    "iou_at_equal_area": "IoU at\nequal area",
    "pixel_accuracy": "pixel\naccuracy",
    "average_precision": "mAP",
    "mean_iou": "mIoU",
    "insertion": "insertion\n(higher)",
    "deletion": "deletion\n(lower)",
    "positive_perturbation": "positive\n(lower)",
    "negative_perturbation": "negative\n(higher)",
}
PHOTO_SIDE = 384  # maximum length of a photo's longer side in the picture, in pixels
Estimates = dict[str, dict[str, Estimate]]  # method -> metric -> estimate


class Table(NamedTuple):
    """A table for the terminal: rows of cells, of which the first is the row's name."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class ClassSummary(NamedTuple):
    """The images that are predicted as one class (or all of them): its label, their number, the share of the background
    in the prediction, the object's area, the energy inside for each method, and the verdict."""

    label: str
    images: int
    background_share: Estimate
    area: Estimate
    energy_inside: dict[str, Estimate]
    verdict: Verdict


class Summary(NamedTuple):
    """A summary of scores.

    Args:
        estimates: part ("all", "correct" and "wrong", if they have images) -> method -> metric -> estimate.
        images: number of images of each part.
        classes: number of the predicted class, or "all" -> what the model reads; empty without masks or a head. A
            class may also be labelled "all".
        groups: number of groups; None without groups.
        seed: seed of the resamples.
    """

    estimates: dict[str, Estimates]
    images: dict[str, int]
    classes: dict[int | Literal["all"], ClassSummary]
    groups: int | None
    seed: int


def summarise(scores: Scores, *, groups: Sequence[str] | None = None, seed: int = 0) -> Summary:
    """Means and 95% intervals of every method and metric.

    Args:
        scores: the result of `Scorer.scores`.
        groups: the group of each image in the list, by index; None without groups.
        seed: seed of the bootstrap.
    """
    of_image = None if groups is None else np.array([groups[index] for index in scores.index.tolist()])
    parts = {"all": np.ones(len(scores.index), bool), "correct": scores.correct, "wrong": scores.wrong}
    parts = {name: chosen for name, chosen in parts.items() if chosen.any()}
    return Summary(
        estimates={name: _estimates(scores, chosen, of_image, seed) for name, chosen in parts.items()},
        images={name: int(chosen.sum()) for name, chosen in parts.items()},
        classes=_classes(scores, of_image, seed),
        groups=None if of_image is None else len(np.unique(of_image)),
        seed=seed,
    )


def _estimates(scores: Scores, chosen: NDArray[np.bool_], groups: Any, seed: int) -> Estimates:
    """The estimates of all methods and metrics, from the same resamples."""
    values, weights = [], []
    for method in scores.methods:
        for metric in scores.metrics:
            if metric == "mean_iou":  # as in the protocol, over all pixels of all images together
                over, under = scores.overlaps[method]
            else:
                over = np.stack([scores.values[method][metric]] * 2, axis=1)
                under = np.ones_like(over)
            values.append(over[chosen])
            weights.append(under[chosen])
    found = iter(bootstrap(np.stack(values, axis=1), np.stack(weights, axis=1), groups=_of(groups, chosen), seed=seed))
    return {method: {metric: next(found) for metric in scores.metrics} for method in scores.methods}


def _classes(scores: Scores, groups: Any, seed: int) -> dict[int | Literal["all"], ClassSummary]:
    if np.isnan(scores.background_worth).all():
        return {}
    found: dict[int | Literal["all"], ClassSummary] = {}
    found["all"] = _class(scores, "all", np.ones(len(scores.index), bool), groups, seed)
    for number in np.unique(scores.predicted).tolist():
        found[number] = _class(scores, _label(scores, number), scores.predicted == number, groups, seed)
    return found


def _class(scores: Scores, label: str, chosen: NDArray[np.bool_], groups: Any, seed: int) -> ClassSummary:
    energies = [scores.values[method]["energy_inside"] for method in scores.methods]
    values = np.stack([scores.background_worth, scores.area, *energies], axis=1)
    weights = np.ones_like(values)
    weights[:, 0] += scores.object_worth + scores.background_worth - 1
    share, area, *inside = bootstrap(values[chosen], weights[chosen], groups=_of(groups, chosen), seed=seed)
    images = int(chosen.sum())
    energy = dict(zip(scores.methods, inside, strict=True))
    return ClassSummary(label, images, share, area, energy, verdict(share.plain, images))


def _of(groups: Any, chosen: NDArray[np.bool_]) -> Any:
    return None if groups is None else groups[chosen]


def score_tables(summary: Summary) -> Iterator[Table]:
    """Tables of localisation and faithfulness for all images; over groups, if there are any; and separately for correct
    and wrong predictions."""
    for part, estimates in summary.estimates.items():
        of = {"all": "", "correct": "correct predictions, ", "wrong": "wrong predictions, "}[part]
        yield from _tables(estimates, f"{of}means over {summary.images[part]} images", grouped=False)
        if part == "all" and summary.groups is not None and summary.groups < summary.images[part]:
            yield from _tables(estimates, f"means over {summary.groups} groups", grouped=True)


def _tables(estimates: Estimates, title: str, *, grouped: bool) -> Iterator[Table]:
    taken = next(iter(estimates.values()))
    for what, names in (("localisation", LOCALIZATION), ("faithfulness", FAITHFULNESS)):
        metrics = [name for name in names if name in taken]
        if not metrics:
            continue
        rows = []
        for method, row in estimates.items():
            found = [row[metric].grouped if grouped else row[metric].plain for metric in metrics]
            rows.append([method, *(f"{each.mean:.3f}" for each in found if each is not None)])
            rows.append(["", *(bounds(each) for each in found if each is not None)])
        yield Table(f"{what}: {title}, 95% intervals below", ["", *(TITLES[metric] for metric in metrics)], rows)


def bounds(interval: Interval) -> str:
    """The bounds of an interval as a short text."""
    return "?" if math.isnan(interval.low) else f"{interval.low:.2f}..{interval.high:.2f}"


def class_lines(summary: Summary) -> list[str]:
    """What the model reads, in words: for all images, then for each predicted class."""
    return [
        f"{found.label} ({found.images} images): {found.verdict.words}{_share(found)}; {_on_the_object(found)}."
        for found in summary.classes.values()
    ]


def _share(found: ClassSummary) -> str:
    """The share of the background as a sentence; empty for too few images, or where there is no share, because object
    and background together are worth nothing."""
    share = found.background_share.plain
    if found.images < FEWEST or not math.isfinite(share.mean):
        return ""
    text = f". The background makes up {share.mean:.0%} of the prediction ({_percents(share)})"
    if round(share.mean, 2) > 1:
        return f"{text}: more than all of it, because the object speaks against it"
    return f"{text}: less than nothing, because it speaks against it" if round(share.mean, 2) < 0 else text


def _on_the_object(found: ClassSummary) -> str:
    """How much of its energy the first method that is not a baseline has on the object, and the object's size."""
    covers = f"covers {found.area.plain.mean:.0%} of the image"
    for method, energy in found.energy_inside.items():
        if method not in BASELINES:
            inside = energy.plain
            bounded = f" ({_percents(inside)})" if found.images >= FEWEST else ""
            return f"{method} has {inside.mean:.0%}{bounded} of its energy on the object, which {covers}"
    return f"the object {covers}"


def _percents(interval: Interval) -> str:
    return "interval not known" if math.isnan(interval.low) else f"{interval.low:.0%}..{interval.high:.0%}"


def write_scores(
    scores: Scores,
    summary: Summary,
    names: Sequence[str],
    folder: Path,
    *,
    groups: Sequence[str] | None = None,
    settings: Mapping[str, Any],
) -> None:
    """Writes scores.json (means, intervals, words), scores.csv (one row per image and method), and, if photographs were
    kept, best_worst.png.

    Args:
        scores, summary: see `Scorer.scores` and `summarise`.
        names: names of all images, by index.
        folder: the output folder.
        groups: groups of all images, by index; None without groups.
        settings: what was scored and how, for scores.json.
    """
    classes = [found for number, found in summary.classes.items() if number != "all"]
    document = {
        **settings,
        "images": summary.images,
        "groups": summary.groups,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": summary.seed},
        "steps": STEPS,
        "lower_is_better": sorted(LOWER_IS_BETTER.intersection(scores.metrics)),
        "scores": {
            part: {method: {metric: _plain(each) for metric, each in row.items()} for method, row in rows.items()}
            for part, rows in summary.estimates.items()
        },
        "all_classes": _class_entry(summary.classes["all"]) if summary.classes else None,
        # A class may be labelled "all"; its entry then replaces the one of all classes.
        "classes": {found.label: _class_entry(found) for found in (*summary.classes.values(), *classes)},
        "reads_background": [found.label for found in classes if found.verdict.reads_background],
    }
    with atomic_write(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    _write_rows(scores, names, groups, folder / "scores.csv")
    if any(best for best, _ in scores.extremes.values()):
        for page in contact_sheet(_pictures(scores, names), columns=3, per_page=6 * len(scores.extremes)):
            save_overlay(folder / "best_worst.png", page)


def _class_entry(found: ClassSummary) -> dict[str, Any]:
    return {
        "images": found.images,
        "verdict": found.verdict.words,
        "background_share": _plain(found.background_share),
        "object_area": _plain(found.area),
        "energy_inside": {method: _plain(each) for method, each in found.energy_inside.items()},
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate for JSON, which has no NaN."""
    entry: dict[str, Any] = {name: _number(value) for name, value in estimate.plain._asdict().items()}
    if estimate.grouped is not None:
        entry["over_groups"] = {name: _number(value) for name, value in estimate.grouped._asdict().items()}
    return entry


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _write_rows(scores: Scores, names: Sequence[str], groups: Sequence[str] | None, path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        facts = ["image", "method", "group", "label", "predicted", "probability", "correct", "object_area"]
        rows.writerow([*facts, "object_worth", "background_worth", *scores.metrics])
        for place, index in enumerate(scores.index.tolist()):
            truth = int(scores.truth[place])
            about: list[Any] = ["" if groups is None else groups[index]]
            about += [_label(scores, truth), _label(scores, int(scores.predicted[place]))]
            about += [_cell(scores.probability[place]), int(scores.correct[place]) if truth >= 0 else ""]
            about += [_cell(each[place]) for each in (scores.area, scores.object_worth, scores.background_worth)]
            for method in scores.methods:
                values = [_cell(scores.values[method][metric][place]) for metric in scores.metrics]
                rows.writerow([names[index], method, *about, *values])


def _cell(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


def _label(scores: Scores, number: int) -> str:
    if number < 0:
        return ""
    return scores.labels[number] if scores.labels else f"class {number}"


def _pictures(scores: Scores, names: Sequence[str]) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Overlays of the best maps of each method, then of its worst ones."""
    for method, extremes in scores.extremes.items():
        for word, kept in zip(("best", "worst"), extremes, strict=True):
            for shown in kept:
                caption = f"{word} {method}, {scores.ranked_by.replace('_', ' ')} {shown.value:.2f}: "
                yield overlay(shown.photo, shown.grid_map), caption + names[shown.number]
