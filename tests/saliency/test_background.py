"""What a model reads: models made by hand, of which that is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from vit.saliency.background import Neither, alone, verdict, worth
from vit.saliency.intervals import Interval

MASK = torch.zeros(1, 4, 4, dtype=torch.bool)
MASK[:, :2, :2] = True  # a quarter
IMAGE = torch.full((1, 3, 4, 4), 2.0)
IMAGE[:, :, :2, :2] = 1.0
CLASS = torch.zeros(1, dtype=torch.int64)  # what is predicted for it


class Model(nn.Module):
    """What the score asks of a classifier besides its logits."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


class Reads(Model):
    """Class 0 for certain when each of the places (rows, columns) has its colour; else any of four classes."""

    def __init__(self, *wanted: tuple[slice, float]) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, images: Tensor) -> Tensor:
        seen = torch.ones(len(images), dtype=torch.bool)
        for rows, colour in self.wanted:
            seen &= (images[:, 0, rows, 0] == colour).all(dim=1)
        return torch.where(seen[:, None], torch.tensor([60.0, 0, 0, 0]), 0.0)


OBJECT, BACKGROUND = (slice(0, 2), 1.0), (slice(2, 4), 2.0)


@pytest.mark.parametrize(
    ("model", "of_object", "of_background"),
    [
        # Certain instead of 1/4, by the one that is read alone.
        (Reads(OBJECT), 3 / 4, 0),
        (Reads(BACKGROUND), 0, 3 / 4),
        # Both are needed: neither alone is worth anything, and they share alike.
        (Reads(OBJECT, BACKGROUND), 3 / 8, 3 / 8),
    ],
)
def test_hand_worked(model: nn.Module, of_object: float, of_background: float) -> None:
    whole = model(IMAGE).double().softmax(dim=1)[:, 0]
    found = alone(model, IMAGE, MASK, CLASS)
    neither = Neither(4).probability()[:1]
    assert neither.tolist() == [1 / 4]
    pair = worth(whole, found.object, found.background, neither)
    assert [each.item() for each in pair] == pytest.approx([of_object, of_background])


def test_the_hole_has_the_colour_of_its_own_background() -> None:
    shown: list[Tensor] = []

    class Looks(Model):
        def forward(self, images: Tensor) -> Tensor:
            shown.append(images)
            return images.mean(dim=(2, 3))

    alone(Looks(), IMAGE, MASK, CLASS)
    of_object, of_background = shown
    assert of_object[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(of_background, torch.full((1, 3, 4, 4), 2.0))


def test_masks_may_be_finer_than_the_image() -> None:
    fine = MASK.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    found, expected = (alone(Reads(OBJECT), IMAGE, masks, CLASS) for masks in (fine, MASK))
    assert all(map(torch.equal, found, expected))


def test_a_favourite_answer_is_not_read_from_the_background() -> None:
    # Class 0 is said wherever there is no object, so it is in the other images' backgrounds, too.
    favourite = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.double)
    neither = Neither(3)
    neither.add(torch.tensor([0, 1, 1]), favourite.repeat(3, 1))
    neither.add(torch.tensor([2, 2, 1]), favourite.repeat(3, 1))
    # Of class 0 there are five images of other classes; of 1 only three, of 2 only four.
    assert neither.probability().tolist() == pytest.approx([0.9, 1 / 3, 1 / 3])
    one = torch.ones(1, dtype=torch.double)
    of_object, of_background = worth(one, one, 0.9 * one, neither.probability()[:1])
    assert of_object.item() == pytest.approx(0.1)
    assert of_background.item() == pytest.approx(0)


@pytest.mark.parametrize(
    ("low", "high", "images", "words", "reads"),
    [
        (0.51, 0.9, 5, "READS THE BACKGROUND", True),
        (0.21, 0.9, 5, "LEANS ON THE BACKGROUND", True),
        (-0.1, 0.19, 5, "reads the object", False),
        (0.1, 0.3, 5, "not clear", False),
        (0.51, 0.9, 4, "too few", False),
        (math.nan, math.nan, 4, "too few", False),
        (math.nan, math.nan, 50, "not clear from this many", False),  # the worths of some resample come to nothing
    ],
)
def test_the_rule(low: float, high: float, images: int, words: str, reads: bool) -> None:
    found = verdict(Interval((low + high) / 2, low, high), images)
    assert words in found.words
    assert found.reads_background is reads
