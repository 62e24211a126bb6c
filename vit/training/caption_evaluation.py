"""How good a captioner is on a split: loss and perplexity, exact match, BLEU and CIDEr, and every single caption."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torchmetrics.text import BLEUScore

from vit.foundation import atomic_write, none_read
from vit.inference import arithmetic
from vit.models.captioner import Captioner
from vit.models.generation import Generated, GenerationOptions
from vit.training.captioning import pad_texts, words_right

Words = Callable[[Sequence[int]], str]  # ids -> the caption, its words apart by spaces


@dataclass
class Captioned:
    """One image: what was said of it, what people say, and whether that is the same.

    Args:
        caption: words apart by spaces.
        references: the same of all its captions, the first the one that the loss is of.
        probability: of the caption, as the model sees it.
        words: `words_right` against the reference that is most like it.
        loss: sum over the tokens of the first reference of -log p.
        tokens: how many these are.
    """

    name: str
    caption: str
    references: list[str]
    probability: float
    words: float
    loss: float
    tokens: int

    @property
    def exact(self) -> bool:
        return self.caption in self.references


@dataclass
class CaptionEvaluation:
    """What was found on a split; `skipped` images, path to reason, count neither as right nor as wrong."""

    images: list[Captioned]
    skipped: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Fractions and counts; without the package pycocoevalcap, CIDEr is None.

        loss, perplexity: of a token given those before it (of the first reference of each image).
        exact_match: share of captions that are one of the references, word for word.
        words_right: mean share of words that are right, each in its place, end of the sentence counted.
        bleu: of up to four words, over the whole split (Papineni et al. 2002; torchmetrics).
        cider: Vedantam et al. 2015, 0 to 10; its words are ours, not those of the Penn Treebank (pycocoevalcap).
        """
        count = len(self.images)
        loss = sum(image.loss for image in self.images) / sum(image.tokens for image in self.images)
        said, references = [image.caption for image in self.images], [image.references for image in self.images]
        return {
            "loss": loss,
            "perplexity": math.exp(loss),
            "exact_match": sum(image.exact for image in self.images) / count,
            "words_right": sum(image.words for image in self.images) / count,
            "bleu": float(BLEUScore(n_gram=4)(said, references)),
            "cider": _cider(said, references),
            "distinct_captions": len(set(said)),
            "images": count,
            "skipped": len(self.skipped),
        }


def _cider(said: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        return None
    numbers = range(len(said))
    score, _ = Cider().compute_score(dict(zip(numbers, references, strict=True)), {n: [said[n]] for n in numbers})
    return float(score)


@torch.inference_mode()
def caption_batches(
    model: Captioner,
    batches: Iterable[dict[str, Any]],
    options: GenerationOptions,
    *,
    device: torch.device,
    precision: str = "fp32",
    seed: int = 0,
) -> Iterator[tuple[dict[str, Any], Generated | None]]:
    """(batch, captions on the CPU) for each batch; None for an empty one. Drawn captions follow from the seed."""
    model = model.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for batch in batches:
        if len(batch["image"]) == 0:
            yield batch, None
            continue
        with arithmetic(precision, device):
            found = model.generate(batch["image"].to(device), options, generator=generator)
        yield batch, Generated(*(each.cpu() for each in found))


def evaluate_captions(
    model: Captioner,
    batches: Iterable[dict[str, Any]],
    names: Sequence[str],
    words: Words,
    options: GenerationOptions,
    *,
    device: torch.device,
    precision: str = "fp32",
    seed: int = 0,
) -> CaptionEvaluation:
    """Runs the model over the batches of a split.

    Args:
        batches: dicts of image, ids, references, index and skipped.
        names: of the images, by index.
        words: reads ids.

    Raises:
        UserError: when no image could be read.
    """
    images: list[Captioned] = []
    skipped: dict[str, str] = {}
    for batch, found in caption_batches(model, batches, options, device=device, precision=precision, seed=seed):
        skipped.update(batch["skipped"])
        if found is None:
            continue
        losses = _losses(model, batch, device, precision)
        for n, (index, references) in enumerate(zip(batch["index"].tolist(), batch["references"], strict=True)):
            said = found.ids[n][found.mask[n]].tolist()
            right = max(words_right(said, reference[1:]) for reference in references)
            texts = [words(reference) for reference in references]
            images.append(
                Captioned(names[index], words(said), texts, math.exp(found.log_prob[n]), right, losses[n],
                          len(batch["ids"][n]) - 1)
            )  # fmt: skip
    if not images:
        raise none_read(f"{len(names)} images", skipped)
    return CaptionEvaluation(images, skipped)


@torch.inference_mode()
def _losses(model: Captioner, batch: dict[str, Any], device: torch.device, precision: str) -> list[float]:
    """Of each image the sum of -log p over the tokens of its first caption."""
    ids = pad_texts(batch["ids"], model.pad).to(device)
    with arithmetic(precision, device):
        logits = model(batch["image"].to(device), ids[:, :-1])
    log_probs = logits.float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return (-log_probs.masked_fill(ids[:, 1:] == model.pad, 0.0).sum(dim=1)).tolist()


def write_caption_evaluation(evaluation: CaptionEvaluation, folder: Path) -> dict[str, Any]:
    """Writes metrics.json and captions.csv; returns the metrics."""
    metrics = evaluation.metrics()
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with (
        atomic_write(folder / "captions.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "probability", "exact", "words_right", "reference"])
        for image in evaluation.images:
            rows.writerow([image.name, image.caption, f"{image.probability:.6f}", int(image.exact),
                           f"{image.words:.4f}", image.references[0]])  # fmt: skip
    return metrics


def write_captions(
    found: Iterable[tuple[dict[str, Any], Generated | None]],
    names: Sequence[str],
    words: Words,
    path: Path,
) -> dict[str, str]:
    """Writes a CSV of image, caption, probability as the batches come, unless there is no image.

    Returns:
        The images that could not be read: path to reason.
    """
    skipped: dict[str, str] = {}

    def told() -> Iterator[list[str]]:
        for batch, captions in found:
            skipped.update(batch["skipped"])
            if captions is None:
                continue
            for index, ids, mask, log_prob in zip(batch["index"].tolist(), *captions, strict=True):
                yield [names[index], words(ids[mask].tolist()), f"{math.exp(log_prob):.6f}"]

    rows = told()
    first = next(rows, None)
    if first is not None:
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(chain([["image", "caption", "probability"], first], rows))
    return skipped
