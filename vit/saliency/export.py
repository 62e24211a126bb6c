"""Maps of many photographs, written as they come: raw arrays, overlays, an index, a contact sheet and a gallery.

One batch is explained while the next is read and the last is drawn; memory does not grow with the number of
photographs. What is done is logged, so that an export that was killed goes on where it stood.
"""

import csv
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from vit.foundation import UserError, atomic_write
from vit.inference import arithmetic
from vit.models.classifier import Classifier, Preprocessing
from vit.saliency.explain import evaluating, explain_batch
from vit.saliency.explanation import Explanation
from vit.saliency.export_log import ExportLog
from vit.saliency.gallery import Entry, write_gallery
from vit.saliency.map_files import MapFormat, finite_range, map_path, save_map
from vit.saliency.methods import METHODS
from vit.saliency.render import Colormap, Layout, contact_sheet, map_flag, overlay, save_overlay, scaled, upsample
from vit.saliency.targets import Target

INDEX_COLUMNS = (
    "image", "img_h", "img_w", "truth", "predicted", "probability", "target", "method", "map", "grid_h", "grid_w",
    "min", "max", "flag",
)  # fmt: skip
WAITING_DRAWINGS = 64  # overlays that may be behind the model before it waits for them
SHEET_OVERLAYS = 24
PHOTO_SIDE = 768  # pixels of a photo's longer side that an overlay shows at most
THUMBNAILS = "thumbnails"  # folder; only there are .jpg files, so it can't clash with a folder of photographs
THUMBNAIL_SIDE = 384


class Photograph(NamedTuple):
    """A photograph of an export.

    Args:
        name: as the index calls it.
        stem: of its files, below the output folder.
        truth: its true label; empty where it is not known.
        version: what tells it from another photograph of the same name, such as the size and the time of its file.
    """

    name: str
    stem: Path
    truth: str = ""
    version: str = ""


class Job(NamedTuple):
    """All that the drawing of one map needs, free of the model and the device."""

    name: str
    stem: Path
    truth: str
    version: str
    photo: np.ndarray  # uint8 (h, w, 3), upright, perhaps smaller than the file's
    size: tuple[int, int]  # (img_h, img_w) of the file, upright
    grid_map: np.ndarray
    predicted: str
    probability: float | None
    target: str


@dataclass(frozen=True)
class ExportOptions:
    """What is explained, and what is written.

    Args:
        method: see `vit.explain`.
        target: the classes that are explained, for methods that know classes.
        start_block: blocks before this one are left out of the walk.
        refine: see `vit.explain`.
        method_options: of the method, see `vit.explain`.
        precision: arithmetic of the forward pass.
        form: of the raw maps, see `save_map`.
        full: also write the map at the photo's own resolution.
        colormap, opacity, layout: of the overlays, see `overlay`.
        gallery: also write a page of all maps, and the thumbnails that it shows.
    """

    method: str = "default"
    target: Target = Target(topk=1)  # noqa: RUF009 (frozen)
    start_block: int = 0
    refine: bool = False
    method_options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    form: MapFormat = "npy"
    full: bool = False
    colormap: Colormap = "inferno"
    opacity: float = 0.6
    layout: Layout = "side_by_side"
    gallery: bool = False

    def stems(self, photograph: Photograph) -> list[Path]:
        """One for each map of a photograph: several maps have the rank of their class in their names."""
        stem, count = photograph.stem, self.target.maps_an_image if METHODS[self.method].needs_class else 1
        return [stem] if count == 1 else [stem.with_name(f"{stem.name}.top{rank}") for rank in range(1, count + 1)]

    def files(self, stem: Path) -> list[Path]:
        """All that is written for a map, the overlay first."""
        found = [_overlay_path(stem), map_path(stem, self.form)]
        return found + [map_path(stem, self.form, full=True)] * self.full + [_thumbnail_path(stem)] * self.gallery

    def facts(self, prepared: Preprocessing) -> dict[str, Any]:
        """What the files follow from besides the photographs and the model, by the names of the options."""
        return {
            "--method": self.method,
            "--target": _target_fact(self.target) if METHODS[self.method].needs_class else "",
            "--start_block": self.start_block,
            "--refine": self.refine,
            **{f"--{self.method}.{name}": value for name, value in self.method_options.items()},
            "--precision": self.precision,
            "--format": self.form,
            "--full": self.full,
            "--colormap": self.colormap,
            "--opacity": self.opacity,
            "--layout": self.layout,
            **asdict(prepared),
        }


def _target_fact(target: Target) -> str:
    if target.by_image:
        table = json.dumps(sorted(target.by_image.items()))
        return f"a table of sha256 {hashlib.sha256(table.encode()).hexdigest()}"
    return f"topk:{target.topk}" if target.topk else f"class {', '.join(map(str, target.classes))}"


def remaining(photographs: Sequence[Photograph], out: Path, options: ExportOptions, log: ExportLog) -> list[int]:
    """Places of the photographs that are not done: one of their maps is not in the log, or is there of another version
    or another photograph, or one of its files is gone."""
    found = []
    for place, each in enumerate(photographs):
        stems = options.stems(each)
        kept = [log.keep(stem, each.name, each.version) for stem in stems]  # of all of them: what is not is forgotten
        if not all(kept) or not all(_is_filled(out / path) for stem in stems for path in options.files(stem)):
            found.append(place)
    return found


def export_maps(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    photographs: Sequence[Photograph],
    out: Path,
    *,
    places: Sequence[int] | None = None,
    options: ExportOptions,
    prepared: Preprocessing,
    device: torch.device,
    log: ExportLog,
    scores: tuple[str, Mapping[str, float]] = ("score", {}),
) -> Iterator[tuple[int, dict[str, str]]]:
    """Explains the batches and writes the files of each photograph; then, of all that are done, if any, index.csv,
    contact_sheet.png of the first ones and, where asked for, gallery.html.

    A generator: it works as it is iterated, a batch a step. Of several processes each explains batches of its own,
    and the first writes what is of all.

    Args:
        batches: dicts of image, photo, size, index and skipped.
        photographs: all of the export, in the order of the index.
        places: the photographs that the batches have, by the batches' index; None for all.
        prepared: what the images went through; says which part of a photo a cropped image shows.
        log: what is done, and gets what is done here.
        scores: for the gallery, see `read_scores`.

    Yields:
        (photographs of the batch, those of it that could not be read: path to reason).
    """
    model = model.to(device)
    given = photographs if places is None else [photographs[place] for place in places]
    stems = [stem for each in photographs for stem in options.stems(each)]
    first = dict.fromkeys(stems[:SHEET_OVERLAYS], None)
    pictures: dict[Path, np.ndarray] = {}
    with ThreadPoolExecutor(_drawing_threads(device)) as pool, _one_thread_of_opencv():
        waiting: deque[tuple[Path, str, Future[tuple[list[Any], np.ndarray]]]] = deque()

        def finish(left: int) -> None:
            while len(waiting) > left:
                stem, version, drawing = waiting.popleft()
                row, picture = drawing.result()
                log.add(stem, row, version)
                if stem in first:
                    pictures[stem] = picture

        for batch in batches:
            for job in _explained(model, batch, given, options, device):
                waiting.append((job.stem, job.version, pool.submit(write_one, job, out, options, prepared)))
                finish(WAITING_DRAWINGS)
            yield len(batch["index"]), dict(batch["skipped"])
        finish(0)
        log.collect()
        if log.part or not any(stem in log for stem in stems):
            return
        _write_index(out / "index.csv", log, stems)
        _write_sheet(out, log, stems, pictures)
        if options.gallery:
            entries = (_entry(stem, row, scores[1]) for stem, row in log.rows(stems))
            write_gallery(out / "gallery.html", entries, title=f"Maps by {options.method}", score=scores[0])


def _drawing_threads(device: torch.device) -> int:
    """One on a processor: its cores are the model's, and each thread that takes one makes all others wait."""
    return 1 if device.type == "cpu" else min(8, os.cpu_count() or 1)


@contextmanager
def _one_thread_of_opencv() -> Iterator[None]:
    """OpenCV works in the calling thread alone while the body runs: its own threads would take the model's cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _explained(
    model: Classifier,
    batch: dict[str, Any],
    photographs: Sequence[Photograph],
    options: ExportOptions,
    device: torch.device,
) -> Iterator[Job]:
    if len(batch["image"]) == 0:
        return
    images = batch["image"].to(device, non_blocking=True)
    given = [photographs[index] for index in batch["index"].tolist()]
    photos = [photo.numpy() for photo in batch["photo"]]
    for rank, (explanation, classes) in enumerate(_explanations(model, images, given, options, device)):
        maps = explanation.maps.cpu().numpy()
        predicted = _predictions(model, explanation.logits)
        for place, photograph in enumerate(given):
            label, probability = predicted[place]
            target = "" if classes is None else _label(model, classes[place])
            yield Job(
                photograph.name, options.stems(photograph)[rank], photograph.truth, photograph.version, photos[place],
                batch["size"][place], maps[place], label, probability, target,
            )  # fmt: skip


def _explanations(
    model: Classifier, images: Tensor, photographs: list[Photograph], options: ExportOptions, device: torch.device
) -> Iterator[tuple[Explanation, list[int] | None]]:
    """One for each rank of the target's classes, with the class of each image; None of a method that knows none."""

    def explanation(classes: Tensor | None) -> Explanation:
        with arithmetic(options.precision, device):
            return explain_batch(
                model,
                images,
                method=options.method,
                target=classes,
                start_block=options.start_block,
                refine=options.refine,
                **options.method_options,
            )

    target = options.target
    if not METHODS[options.method].needs_class:
        yield explanation(None), None
    elif target.topk == 1:  # the method finds it by itself, without one more forward pass
        found = explanation(None)
        yield found, found.logits.argmax(dim=1).tolist()
    else:
        logits = None
        if target.needs_logits:
            with evaluating(model), torch.inference_mode(), arithmetic(options.precision, device):
                logits = model(images)
        of_images = target.of([each.name for each in photographs], logits)
        for classes in zip(*of_images, strict=True):
            yield explanation(torch.tensor(classes, device=device)), list(classes)


def _predictions(model: Classifier, logits: Tensor) -> list[tuple[str, float | None]]:
    if model.num_classes == 0:
        return [("", None)] * len(logits)
    probabilities, classes = model.probabilities(logits).max(dim=1)
    return [(_label(model, c), p) for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)]


def _label(model: Classifier, index: int) -> str:
    return model.labels[index] if model.labels else f"class {index}"


def write_one(job: Job, out: Path, options: ExportOptions, prepared: Preprocessing) -> tuple[list[Any], np.ndarray]:
    """Writes the files of one map; returns its row of the index, and its overlay."""
    limits = finite_range(job.grid_map)
    path = map_path(job.stem, options.form)
    save_map(out / path, job.grid_map, options.form)
    whole = prepared.resize_mode == "squash"
    if options.full:
        full = upsample(job.grid_map, job.size) if whole else uncropped(job.grid_map, job.size, prepared)
        save_map(out / map_path(job.stem, options.form, full=True), full, options.form, limits=limits)
    shown = job.grid_map if whole else uncropped(job.grid_map, job.size, prepared, shown=job.photo.shape[:2])
    picture = overlay(
        job.photo, shown, label=_heading(job), probability=job.probability, colormap=options.colormap,
        opacity=options.opacity, layout=options.layout,
    )  # fmt: skip
    save_overlay(out / _overlay_path(job.stem), picture)
    if options.gallery:
        save_overlay(out / _thumbnail_path(job.stem), _thumbnail(picture))
    probability = "" if job.probability is None else f"{job.probability:.6f}"
    ends = ["", ""] if limits is None else [f"{value:.6g}" for value in limits]
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    row = [job.name, *job.size, job.truth, job.predicted, probability, job.target, options.method, name]
    return [*row, *job.grid_map.shape, *ends, map_flag(job.grid_map)], picture


def _heading(job: Job) -> str | None:
    """What an overlay says above the photo: the prediction, and the class of the map where it is another."""
    other = job.target not in ("", job.predicted)
    return f"map of {job.target}; predicted {job.predicted}" if other else job.predicted or None


def _overlay_path(stem: Path) -> Path:
    return stem.with_name(stem.name + ".png")


def _thumbnail_path(stem: Path) -> Path:
    return THUMBNAILS / stem.with_name(stem.name + ".jpg")


def _is_filled(path: Path) -> bool:
    """Whether there is a file with something in it: pictures are not waited for until they lie on the disk."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    return scaled(picture, min(1.0, THUMBNAIL_SIDE / max(picture.shape[:2])))


def _write_index(path: Path, log: ExportLog, stems: list[Path]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(INDEX_COLUMNS)
        rows.writerows(row for _, row in log.rows(stems))


def _write_sheet(out: Path, log: ExportLog, stems: list[Path], pictures: dict[Path, np.ndarray]) -> None:
    """contact_sheet.png; an overlay that an earlier process drew is read from its file."""

    def overlays() -> Iterator[tuple[np.ndarray, str]]:
        for stem, row in islice(log.rows(stems), SHEET_OVERLAYS):
            picture = pictures.get(stem)
            yield _read_picture(out / _overlay_path(stem)) if picture is None else picture, row[0]

    for page in contact_sheet(overlays(), per_page=SHEET_OVERLAYS):
        save_overlay(out / "contact_sheet.png", page)


def _read_picture(path: Path) -> np.ndarray:
    """In memory: OpenCV's own reader can't take a path that is not UTF-8."""
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError(f"{path} is damaged.\nDelete it, and --resume draws it again.")
    return np.asarray(picture)


def _entry(stem: Path, row: list[Any], scores: Mapping[str, float]) -> Entry:
    cell = dict(zip(INDEX_COLUMNS, row, strict=True))
    return Entry(
        cell["image"], _overlay_path(stem), _thumbnail_path(stem), cell["predicted"],
        float(cell["probability"]) if cell["probability"] else None, cell["target"], cell["truth"], cell["flag"],
        scores.get(cell["image"]),
    )  # fmt: skip


def uncropped(
    grid_map: np.ndarray, size: tuple[int, int], prepared: Preprocessing, *, shown: tuple[int, int] | None = None
) -> np.ndarray:
    """(img_h, img_w) float32: the map on the part of the photo that the model saw, NaN around it.

    Args:
        grid_map: (grid_h, grid_w).
        size: (img_h, img_w) of the photo.
        prepared: how the centre was cropped.
        shown: (img_h, img_w) of the result, where a smaller copy of the photo is shown; None for `size`.
    """
    shown = shown or size
    rows, columns = (_pixels(*part, side) for part, side in zip(_seen(size, prepared), shown, strict=True))
    full = np.full(shown, np.nan, np.float32)
    full[rows, columns] = upsample(grid_map, (rows.stop - rows.start, columns.stop - columns.start))
    return full


def _pixels(start: float, end: float, side: int) -> slice:
    """The whole pixels of a part of `side`, one at least."""
    first = min(round(start * side), side - 1)
    return slice(first, max(round(end * side), first + 1))


def _seen(size: tuple[int, int], prepared: Preprocessing) -> list[tuple[float, float]]:
    """Where the centre crop of a photo starts and ends, in shares of its height and of its width.

    To the same whole pixels as the crop that the data modules cut: the photo is resized until it just covers
    image_size / crop_pct, rounded down; a square one by its shorter side, with the longer one rounded down.
    """
    kept = prepared.image_size
    whole_h, whole_w = (math.floor(side / prepared.crop_pct) for side in kept)
    if whole_h == whole_w:
        resized = [int(whole_h * side / min(size)) for side in size]
    else:
        ratio = min(size[0] / whole_h, size[1] / whole_w)
        resized = [round(side / ratio) for side in size]
    starts = [round((whole - crop) / 2) for whole, crop in zip(resized, kept, strict=True)]
    return [(start / whole, (start + crop) / whole) for start, whole, crop in zip(starts, resized, kept, strict=True)]
