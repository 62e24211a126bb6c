"""Scores of maps over a data set, beside baselines."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency import score
from vit.saliency.baselines import centre_gaussian, random_map
from vit.saliency.explain import Explanation, explain_batch
from vit.saliency.localization import evaluate_maps
from vit.saliency.score import score_localization

CPU = torch.device("cpu")
METRICS = ["pointing_game", "energy_inside", "iou_at_equal_area"]


@pytest.fixture
def model() -> Classifier:
    encoder = image_encoder(image_size=(14, 21), patch_size=(7, 7), embed_dim=10, depth=2, num_heads=2)
    return Classifier(encoder, 3, labels=["crow", "heron", "robin"]).eval()


def batch(masks: Tensor, first: int = 0) -> dict[str, Any]:
    return {
        "image": torch.randn(len(masks), 3, 14, 21),
        "index": torch.arange(first, first + len(masks)),
        "mask": masks,
    }


def objects(count: int) -> Tensor:
    """(count, 14, 21) masks, each of another corner of the image."""
    masks = torch.zeros(count, 14, 21, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[(slice(0, 5), slice(9, 14))[index % 2], (slice(0, 6), slice(15, 21))[index // 2 % 2]] = True
    return masks


def test_a_method_that_answers_with_the_mask_scores_one(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = iter([objects(4), objects(2)])

    def answer(model: Classifier, images: Tensor, **options: Any) -> Explanation:
        return Explanation(next(masks).float(), torch.zeros(len(images), 3))

    monkeypatch.setattr(score, "explain_batch", answer)
    found = score_localization(model, [batch(objects(4)), batch(objects(2), 4)], device=CPU)
    assert found["rollout"] == dict.fromkeys(METRICS, 1.0)
    # The objects lie in the corners: a map of the centre misses them, and chance hits some.
    assert found["centre"]["pointing_game"] == 0
    assert 0 < found["random"]["energy_inside"] < 0.5


def test_scores_are_means_over_images_of_maps_in_patches(model: Classifier) -> None:
    masks = objects(5)
    batches = [batch(masks[:3]), batch(masks[3:], 3)]
    options = {"start_block": 1}
    found = score_localization(model, batches, method="attribution", device=CPU, method_options=options)
    images = torch.cat([each["image"] for each in batches])
    expected = {
        "attribution": explain_batch(model, images, method="attribution", start_block=1).maps,
        "centre": centre_gaussian(2, 3).expand(5, 2, 3),
        "random": torch.stack([random_map(2, 3, seed=index) for index in range(5)]),
    }
    assert list(found) == ["attribution", "centre", "random"]
    for name, maps in expected.items():
        means = {metric: float(values.mean()) for metric, values in evaluate_maps(maps, masks).items()}
        assert found[name] == pytest.approx(means, abs=1e-6), name


def test_images_without_an_object_are_left_out(model: Classifier) -> None:
    masks = objects(4)
    masks[[0, 2]] = False
    mixed = batch(masks)
    kept = {name: values[[1, 3]] for name, values in mixed.items()}
    nothing = batch(torch.zeros(2, 14, 21, dtype=torch.bool), 4)
    assert score_localization(model, [mixed, nothing], device=CPU) == score_localization(model, [kept], device=CPU)


def test_without_any_object_there_is_no_score(model: Classifier) -> None:
    with pytest.raises(UserError, match="no image with an object"):
        score_localization(model, [batch(torch.zeros(2, 14, 21, dtype=torch.bool))], device=CPU)
