"""The ImageNet-Segmentation protocol against numbers worked by hand and against scikit-learn, image by image."""

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score
from torch import Tensor
from torch.nn import functional

from vit.saliency.segmentation import segment

MAP = torch.tensor([[[4.0, 0.0], [1.0, 3.0]]])  # stretched to 1, 0, 1/4, 3/4; their mean is 1/2


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).reshape(1, 2, 2)


@pytest.mark.parametrize(
    ("truth", "accuracy", "precision", "intersection", "union"),
    [
        # Above the mean are the first and the last: just the object.
        (mask(1, 0, 0, 1), 1, 1, (2, 2), (2, 2)),
        # One of two right on either side. Each of the answers 1, 3/4, 1/4, 0 is given twice, and right once.
        (mask(1, 1, 0, 0), 1 / 2, 1 / 2, (1, 1), (3, 3)),
        # The opposite. All wrong answers come first: 4 right ones among the ranks 5 to 8, in two ties, 2/6 and 4/8.
        (mask(0, 1, 1, 0), 0, (2 / 6 + 4 / 8) / 2, (0, 0), (4, 4)),
    ],
)
def test_hand_worked(truth: Tensor, accuracy: float, precision: float, intersection: tuple, union: tuple) -> None:
    found = segment(MAP, truth)
    assert found.pixel_accuracy.item() == pytest.approx(accuracy)
    assert found.average_precision.item() == pytest.approx(precision)
    assert found.intersection.tolist() == [list(intersection)]
    assert found.union.tolist() == [list(union)]
    assert found.mean_iou.item() == pytest.approx(sum(i / u for i, u in zip(intersection, union, strict=True)) / 2)


def test_it_is_the_published_protocol() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3, 5, generator=generator)
    maps[2] = (maps[2] * 2).round()  # with ties
    masks = torch.rand(4, 24, 40, generator=generator) > 0.7
    found = segment(maps, masks)
    for number in range(4):
        one = functional.interpolate(maps[number][None, None], (24, 40), mode="bilinear")[0, 0]
        one = (one - one.min()) / (one.max() - one.min())
        chosen, truth = (one > one.mean()).flatten().numpy(), masks[number].flatten().numpy()
        assert found.pixel_accuracy[number] == pytest.approx(accuracy_score(truth, chosen))
        assert found.mean_iou[number] == pytest.approx(jaccard_score(truth, chosen, average="macro"))
        answers, right = torch.stack([1 - one, one]).flatten().numpy(), torch.stack([~masks[number], masks[number]])
        expected = average_precision_score(right.flatten().numpy(), answers)
        assert found.average_precision[number] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("flat", [0.0, 0.1, float("nan"), float("inf")])
def test_what_can_not_be_stretched_calls_all_background(flat: float) -> None:
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[:, :5, :12] = True  # a tenth
    found = segment(torch.full((1, 7, 7), flat), masks)
    assert found.pixel_accuracy.item() == pytest.approx(0.9)
    assert found.average_precision.item() == pytest.approx(0.5)
    assert found.intersection.tolist() == [[540, 0]]
    assert found.union.tolist() == [[600, 60]]


def test_maps_and_masks_of_other_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="of one batch"):
        segment(torch.rand(2, 3, 3), torch.ones(1, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="float32"):
        segment(torch.rand(1, 3, 3), torch.ones(1, 6, 6))
