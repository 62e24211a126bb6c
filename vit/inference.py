"""The device and precision that a model runs in, and predictions for many batches."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vit import processes
from vit.foundation import UserError, atomic_write
from vit.models.classifier import Classifier


def choose_device(device: str) -> torch.device:
    """The device of an option; "auto" uses a GPU if there is one.

    Raises:
        UserError: when the machine has no such device.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if present["cuda"] else "mps" if present["mps"] else "cpu")
    if not present[device]:
        raise UserError(f"There is no {device} device on this machine; try --device auto.")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """Replaces "auto" by "bf16" where the hardware is faster with it (benchmarks/results), otherwise by "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _bf16_is_quick() else "fp32"


def _bf16_is_quick() -> bool:
    """Whether this CPU trains faster in bf16 than in fp32.

    With AMX it does. With only AVX512_BF16, training was 1.5 times as fast on AMD, but only half as fast on an Intel
    Xeon, which is faster in fp32.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and _vendor() == "AuthenticAMD"


@cache
def _vendor() -> str:
    """The CPU's vendor as Linux names it, such as AuthenticAMD; empty if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which forward passes run in "auto", "fp32" or "bf16"."""
    if choose_precision(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@torch.inference_mode()
def predict_batches(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    *,
    device: torch.device,
    precision: str = "fp32",
    tta: str = "none",
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yields (batch, probabilities (B, num_classes) float32 on the CPU) for each batch, even for an empty one.

    Args:
        tta: the `views` of an image whose probabilities are averaged.
    """
    model = model.to(device).eval()
    for batch in batches:
        found = []
        for images in views(batch["image"].to(device, non_blocking=True), tta):
            with arithmetic(precision, device):
                logits = model(images)
            found.append(model.probabilities(logits.float()))
        yield batch, torch.stack(found).mean(dim=0).cpu() if len(found) > 1 else found[0].cpu()


def views(images: Tensor, tta: str) -> Iterator[Tensor]:
    """The views of test-time augmentation, (B, C, h, w) each.

    Args:
        tta: "none": the images themselves; "flip": the images and their mirror images; "crops": four corners and the
            centre, with 7/8 of each side and resized, and their mirror images (Krizhevsky et al. 2012).
    """
    if tta != "crops":
        yield images
        if tta == "flip":
            yield images.flip(-1)
        return
    size = images.shape[-2:]
    height, width = (max(1, round(side * 7 / 8)) for side in size)
    below, right = size[0] - height, size[1] - width
    for top, left in ((0, 0), (0, right), (below, 0), (below, right), (below // 2, right // 2)):
        crop = images[..., top : top + height, left : left + width]
        # interpolate refuses an empty batch.
        view = F.interpolate(crop, size, mode="bicubic", align_corners=False) if len(images) else images
        yield view
        yield view.flip(-1)


def write_predictions(
    found: Iterable[tuple[dict[str, Any], Tensor]],
    names: Sequence[str],
    labels: Sequence[str],
    path: Path,
    *,
    topk: int,
) -> dict[str, str]:
    """Writes a CSV of image, label, probability, label_2, probability_2 ... as the batches arrive; none of no image.

    Several processes, each with its own batches, write one file when all of them are done.

    Args:
        found: as `predict_batches` yields it.
        names: names of the images, by index.
        labels: the classes, in order.
        topk: labels per image, limited to the number of classes.

    Returns:
        The images that could not be read (path to reason).
    """
    topk = min(max(topk, 1), len(labels))
    skipped: dict[str, str] = {}

    def rows() -> Iterator[tuple[int, list[str]]]:
        for batch, probabilities in found:
            skipped.update(batch["skipped"])
            for index, row in zip(batch["index"].tolist(), probabilities, strict=True):
                best = row.topk(topk)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                yield index, [names[index], *(cell for c, p in pairs for cell in (labels[c], f"{p:.6f}"))]

    if processes.count() == 1:
        _write_rows(path, topk, rows())
        return skipped
    merged = sorted(row for each in processes.gathered(list(rows())) for row in each)
    if processes.rank() == 0:
        _write_rows(path, topk, merged)
    return processes.merged(skipped)


def _write_rows(path: Path, topk: int, found: Iterable[tuple[int, list[str]]]) -> None:
    found = iter(found)
    first = next(found, None)
    if first is None:
        return
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        later = [f"{column}_{n}" for n in range(2, topk + 1) for column in ("label", "probability")]
        rows.writerow(["image", "label", "probability", *later])
        rows.writerows(row for _, row in chain([first], found))
