"""Insertion, deletion and perturbation: areas worked by hand, and the papers' plain loops on a real model."""

import pytest
import torch
from sklearn.metrics import auc
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.saliency.faithfulness import STEPS, Perturbation, removal_ranks


class Made(nn.Module):
    """A model made by hand, of images (B, 1, 4, 5): sure of class 0 where `lit`, else of class 1."""

    num_classes = 2
    preprocessing = Preprocessing((4, 5), mean=(0.0,), std=(1.0,))

    def __init__(self, lit) -> None:
        super().__init__()
        self.lit = lit

    def forward(self, images: Tensor) -> Tensor:
        sure = torch.where(self.lit(images[:, 0]), 50.0, -50.0)
        return torch.stack([sure, torch.zeros_like(sure)], dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


WHITE = torch.ones(1, 1, 4, 5)  # 20 pixels: each step takes one


def test_areas_of_a_model_that_wants_eleven_pixels() -> None:
    model = Made(lambda images: images.sum((1, 2)) > 10.5)
    found = Perturbation(model, WHITE, fill="zero").scores(torch.rand(1, 4, 5))
    # 1 until 9 of 20 pixels are gone, 0 from 10 on; and the same the other way round.
    assert found["deletion"].item() == pytest.approx(9.5 / 20)
    assert found["insertion"].item() == pytest.approx(9.5 / 20)
    # 1 at 0, 10, 20, 30 and 40%, 0 at 50% and above.
    assert found["positive_perturbation"].item() == pytest.approx(0.45)
    assert found["negative_perturbation"].item() == pytest.approx(0.45)


def test_the_pixel_that_counts_is_found_or_not() -> None:
    model = Made(lambda images: images[:, 2, 3] > 0.5)
    right = torch.arange(20.0).reshape(1, 4, 5) / 100
    right[0, 2, 3] = 1
    found = Perturbation(model, WHITE.repeat(2, 1, 1, 1), fill="zero").scores(torch.cat([right, -right]))
    # Taken away first, only the first of 21 answers is right; taken away last, all but the last are.
    assert found["deletion"].tolist() == pytest.approx([0.5 / 20, 19.5 / 20])
    assert found["insertion"].tolist() == pytest.approx([19.5 / 20, 0.5 / 20])
    assert found["positive_perturbation"].tolist() == pytest.approx([0.05, 0.9])
    assert found["negative_perturbation"].tolist() == pytest.approx([0.9, 0.05])


def test_accuracy_is_of_the_truth_where_it_is_given() -> None:
    perturbation = Perturbation(Made(lambda images: images.sum((1, 2)) > 10.5), WHITE, fill="zero")
    found = perturbation.scores(torch.rand(1, 4, 5), torch.tensor([1]))
    assert found["positive_perturbation"].item() == pytest.approx(0.9 - 0.45)
    assert found["deletion"].item() == pytest.approx(9.5 / 20)  # of the predicted class, always


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    prepared = Preprocessing((10, 15), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    encoder = image_encoder(image_size=(10, 15), patch_size=(5, 5), embed_dim=24, depth=2, num_heads=2)
    made = Classifier(encoder, 4, preprocessing=prepared)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.7)
    return made.eval()


@torch.no_grad()
def test_it_is_the_papers_loops(model: Classifier) -> None:
    raw, maps, size = torch.rand(3, 3, 10, 15), torch.rand(3, 10, 15), 150
    mean, std = (torch.tensor(each)[:, None, None] for each in (model.preprocessing.mean, model.preprocessing.std))
    images = (raw - mean) / std
    truths = model(images).argmax(dim=1)
    truths[2] = (truths[2] + 1) % 4
    found = Perturbation(model, images).scores(maps, truths)
    blurred = gaussian_blur(images, [3, 3], [5 * 15 / 224] * 2)
    for number in range(3):
        predicted = model(images)[number].argmax()
        order = maps[number].flatten().argsort(descending=True)
        curves: dict[str, list[float]] = {"deletion": [], "insertion": []}
        for step in range(STEPS + 1):
            left, blurry = order[: size * step // STEPS], order[size - size * (STEPS - step) // STEPS :]
            gone, back = images[number].flatten(1).clone(), images[number].flatten(1).clone()
            gone[:, left] = 0
            back[:, blurry] = blurred[number].flatten(1)[:, blurry]
            for name, shown in (("deletion", gone), ("insertion", back)):
                curves[name].append(model(shown.reshape(1, 3, 10, 15)).softmax(1)[0, predicted].item())
        for name, sign in (("positive_perturbation", 1), ("negative_perturbation", -1)):
            curves[name] = []
            for tenth in range(10):
                black = raw[number].flatten(1).clone()
                black[:, (sign * maps[number].flatten()).topk(size * tenth // 10).indices] = 0
                answer = model((black.reshape(1, 3, 10, 15) - mean) / std).argmax()
                curves[name].append(float(answer == truths[number]))
        for name, curve in curves.items():
            steps = [number / (STEPS if len(curve) > 10 else 10) for number in range(len(curve))]
            assert found[name][number].item() == pytest.approx(auc(steps, curve), abs=1e-6), name
    assert all(values.unique().numel() > 1 for values in found.values()), "not all the same, or nothing was compared"


def test_a_score_costs_no_more_forward_passes_than_it_has_images_to_ask_of(model: Classifier) -> None:
    calls: list[int] = []
    hook = model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    perturbation = Perturbation(model, torch.randn(2, 3, 10, 15))
    perturbation.scores(torch.rand(2, 2, 3))
    # Whole; 19 and the empty image of each of deletion and insertion; 10 to 90% black from either end.
    assert calls == [2] * (1 + 19 + 19 + 2 + 9 + 9)
    perturbation.scores(torch.rand(2, 2, 3))
    assert len(calls) == 59 + 56, "what no map changes is asked once"
    calls.clear()
    Perturbation(model, torch.randn(2, 3, 10, 15), fill="blur").scores(torch.rand(2, 2, 3))
    hook.remove()
    assert len(calls) == 1 + 19 + 19 + 1, "with one fill, the four metrics share their images"


def test_each_image_of_a_batch_is_scored_alone(model: Classifier) -> None:
    images, maps = torch.randn(3, 3, 10, 15), torch.rand(3, 2, 3)
    together = Perturbation(model, images).scores(maps)
    for number in range(3):
        alone = Perturbation(model, images[number : number + 1]).scores(maps[number : number + 1])
        for name, values in alone.items():
            assert values.item() == pytest.approx(together[name][number].item(), abs=1e-5)


def test_ranks() -> None:
    maps = torch.tensor([[[0.2, 0.9, float("nan")], [0.4, -1.0, 0.3]]])
    assert removal_ranks(maps, (2, 3)).tolist() == [[[3, 0, 5], [1, 4, 2]]]
    # Upsampled, a patch that is not a number makes its own pixels last, and no others.
    large = removal_ranks(torch.tensor([[[float("nan"), 0.4], [0.2, 0.3]]]), (8, 8))[0]
    assert sorted(large[:4, :4].flatten().tolist()) == list(range(48, 64))
    flat = removal_ranks(torch.zeros(2, 2, 2), (6, 6))
    assert torch.equal(flat[0], flat[1])
    assert sorted(flat[0].flatten().tolist()) == list(range(36))
    # Ties don't go by place: of the first half, about half lie in the upper half of the picture.
    assert 3 <= (flat[0, :3] < 18).sum() <= 15


def test_a_model_without_a_head_is_refused() -> None:
    encoder = image_encoder(image_size=(10, 15), patch_size=(5, 5), embed_dim=8, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="no head"):
        Perturbation(Classifier(encoder, 0), torch.randn(1, 3, 10, 15))
