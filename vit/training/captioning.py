"""Captioning as a LightningModule: the loss of the next word, and captions that are compared with people's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from vit.checkpoints.captioner import write_captioner
from vit.checkpoints.card import Training
from vit.models.captioner import Captioner
from vit.models.generation import GenerationOptions
from vit.training.task import Judge, TrainingTask


class CaptioningTask(TrainingTask):
    """Trains a Captioner. A batch is {"image": (B, C, h, w), "ids": B lists, "references": B lists, "skipped": [...]}.

    `ids` is one caption per image, from its start token to its end token; `references` are all its captions.

    Args:
        model: the captioner to train.
        label_smoothing: see `Captioner.loss`; validation has none.
        options: the rest, as `TrainingTask` takes them.
    """

    model: Captioner
    judge = Judge("val_exact", "exact match")
    told: ClassVar = {"exact match": "val_exact", "words right": "val_words"}

    def __init__(self, model: Captioner, *, label_smoothing: float = 0.0, **options: Any):
        super().__init__(model, **options)
        self.label_smoothing = label_smoothing
        self.val_exact = MeanMetric()
        self.val_words = MeanMetric()

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        ids = pad_texts(batch["ids"], self.model.pad).to(batch["image"].device)
        return self.model.loss(batch["image"], ids, label_smoothing=self.label_smoothing), _targets(batch["ids"])

    def stand_in(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super().stand_in(batch) | {"ids": [[self.model.start, self.model.end]]}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images = batch["image"]
        if len(images) == 0:
            return
        ids = pad_texts(batch["ids"], self.model.pad).to(images.device)
        self.update_val_loss(self.evaluated.loss(images, ids), _targets(batch["ids"]))
        longest = max(len(caption) for references in batch["references"] for caption in references)
        options = GenerationOptions(max_tokens=min(longest + 1, self.model.decoder.max_tokens))
        found = self.evaluated.generate(images, options)
        for row, mask, references in zip(found.ids, found.mask, batch["references"], strict=True):
            text = row[mask].tolist()
            self.val_exact.update(float(any(text == reference[1:] for reference in references)))
            self.val_words.update(max(words_right(text, reference[1:]) for reference in references))

    def write_model(self, model: Any, folder: Path, about: Training | None) -> None:
        write_captioner(model, folder, about)

    def epoch_metrics(self) -> dict[str, Metric]:
        return {**super().epoch_metrics(), "val_exact": self.val_exact, "val_words": self.val_words}


def pad_texts(texts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, T) ids of B texts, the shorter ones padded at their ends."""
    longest = max(len(text) for text in texts)
    return torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])


def words_right(text: Sequence[int], reference: Sequence[int]) -> float:
    """Share of positions at which two texts have the same token, relative to the longer text, including end tokens."""
    same = sum(ours == theirs for ours, theirs in zip(text, reference, strict=False))
    return same / max(len(text), len(reference))


def _targets(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens of the texts are predicted: all except their first ones."""
    return sum(len(text) - 1 for text in texts)
