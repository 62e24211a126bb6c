"""Maps of many photographs, written as they come: raw arrays, overlays, an index and a contact sheet.

One batch is explained while the next is read and the last is drawn; memory does not grow with the number of
photographs.
"""

import csv
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from vit.foundation import atomic_write
from vit.inference import arithmetic
from vit.models.classifier import Classifier, Preprocessing
from vit.saliency.explain import explain_batch
from vit.saliency.render import contact_sheet, map_flag, overlay, save_map, save_overlay, upsample

INDEX_COLUMNS = (
    "image", "img_h", "img_w", "predicted", "probability", "target", "method", "grid_h", "grid_w", "min", "max", "flag",
)  # fmt: skip
WAITING_DRAWINGS = 64  # overlays that may be behind the model before it waits for them
SHEET_OVERLAYS = 24
PHOTO_SIDE = 768  # pixels of a photo's longer side that an overlay shows at most


class Job(NamedTuple):
    """All that the drawing of one photograph needs, free of the model and the device."""

    name: str
    stem: Path
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
        target: None for the predicted class, or the index of a class.
        start_block: blocks before this one are left out of the walk.
        full: also write the map at the photo's own resolution, as NAME.full.npy.
        precision: arithmetic of the forward pass.
        method_options: of the method, see `vit.explain`.
    """

    method: str = "rollout"
    target: int | None = None
    start_block: int = 0
    full: bool = False
    precision: str = "fp32"
    method_options: Mapping[str, Any] = field(default_factory=dict)


def export_maps(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    names: list[str],
    stems: list[Path],
    out: Path,
    *,
    options: ExportOptions,
    prepared: Preprocessing,
    device: torch.device,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Explains the batches and writes STEM.npy (float32, token grid) and STEM.png (overlay) for each photograph,
    index.csv, and contact_sheet.png of the first ones.

    A generator: it works as it is iterated, a batch a step.

    Args:
        batches: dicts of image, photo, size, index and skipped.
        names, stems: of the photographs, by index: as the index calls them, and below `out` without a suffix.
        prepared: what the images went through; says which part of a photo a cropped image shows.

    Yields:
        (photographs of the batch, those of it that could not be read: path to reason).
    """
    model = model.to(device)
    first: list[tuple[np.ndarray, str]] = []
    with (
        atomic_write(out / "index.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
        ThreadPoolExecutor(_drawing_threads(device)) as pool,
        _one_thread_of_opencv(),
    ):
        rows = csv.writer(file)
        rows.writerow(INDEX_COLUMNS)
        waiting: deque[Future[tuple[list[Any], np.ndarray]]] = deque()

        def finish(left: int) -> None:
            while len(waiting) > left:
                row, picture = waiting.popleft().result()
                rows.writerow(row)
                if len(first) < SHEET_OVERLAYS:
                    first.append((picture, row[0]))

        for batch in batches:
            for job in _explained(model, batch, names, stems, options, device):
                waiting.append(pool.submit(write_one, job, out, options, prepared))
            finish(WAITING_DRAWINGS)
            yield len(batch["index"]), dict(batch["skipped"])
        finish(0)
    for page in islice(contact_sheet(first, per_page=SHEET_OVERLAYS), 1):
        save_overlay(out / "contact_sheet.png", page)


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
    names: list[str],
    stems: list[Path],
    options: ExportOptions,
    device: torch.device,
) -> Iterator[Job]:
    if len(batch["image"]) == 0:
        return
    with arithmetic(options.precision, device):
        explanation = explain_batch(
            model,
            batch["image"].to(device, non_blocking=True),
            method=options.method,
            target=options.target,
            start_block=options.start_block,
            **options.method_options,
        )
    maps = explanation.maps.cpu().numpy()
    predicted = _predictions(model, explanation.logits)
    target = "predicted" if options.target is None else _label(model, options.target)
    for place, index in enumerate(batch["index"].tolist()):
        label, probability = predicted[place]
        photo = batch["photo"][place].numpy()
        yield Job(names[index], stems[index], photo, batch["size"][place], maps[place], label, probability, target)


def _predictions(model: Classifier, logits: Tensor) -> list[tuple[str, float | None]]:
    if model.num_classes == 0:
        return [("", None)] * len(logits)
    probabilities, classes = logits.softmax(dim=1).max(dim=1)
    return [(_label(model, c), p) for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)]


def _label(model: Classifier, index: int) -> str:
    return model.labels[index] if model.labels else f"class {index}"


def write_one(job: Job, out: Path, options: ExportOptions, prepared: Preprocessing) -> tuple[list[Any], np.ndarray]:
    """Writes the files of one photograph; returns its row of the index, and its overlay."""
    flag = map_flag(job.grid_map)
    save_map(out / job.stem.with_name(job.stem.name + ".npy"), job.grid_map)
    whole = prepared.resize_mode == "squash"
    if options.full:
        full = upsample(job.grid_map, job.size) if whole else uncropped(job.grid_map, job.size, prepared)
        save_map(out / job.stem.with_name(job.stem.name + ".full.npy"), full)
    shown = job.grid_map if whole else uncropped(job.grid_map, job.photo.shape[:2], prepared)
    picture = overlay(job.photo, shown, label=job.predicted or None, probability=job.probability)
    save_overlay(out / job.stem.with_name(job.stem.name + ".png"), picture)
    probability = "" if job.probability is None else f"{job.probability:.6f}"
    values = job.grid_map[np.isfinite(job.grid_map)]
    low, high = (f"{values.min():.6g}", f"{values.max():.6g}") if values.size else ("", "")
    row = [job.name, *job.size, job.predicted, probability, job.target, options.method, *job.grid_map.shape]
    return [*row, low, high, flag], picture


def uncropped(grid_map: np.ndarray, size: tuple[int, int], prepared: Preprocessing) -> np.ndarray:
    """(img_h, img_w) float32: the map on the part of the photo that the model saw, NaN around it.

    Args:
        grid_map: (grid_h, grid_w).
        size: (img_h, img_w) of the photo.
        prepared: how the centre was cropped: the shorter side was scaled to image_size / crop_pct.
    """
    height, width = size
    scale = min(height / prepared.image_size[0], width / prepared.image_size[1]) * prepared.crop_pct
    crop_h = min(height, round(prepared.image_size[0] * scale))
    crop_w = min(width, round(prepared.image_size[1] * scale))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    full = np.full(size, np.nan, np.float32)
    full[top : top + crop_h, left : left + crop_w] = upsample(grid_map, (crop_h, crop_w))
    return full
