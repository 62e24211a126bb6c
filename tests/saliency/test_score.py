"""Scores of maps over a data set, beside baselines."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency import score
from vit.saliency.baselines import centre_gaussian
from vit.saliency.explain import Explanation, explain_batch
from vit.saliency.faithfulness import Fill, Perturbation
from vit.saliency.localization import evaluate_maps
from vit.saliency.score import FAITHFULNESS, LOCALIZATION, SHOWN, Scorer, Scores, chosen_methods

CPU = torch.device("cpu")


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


def scored(
    model: Classifier, *batches: dict[str, Any], methods: tuple[str, ...] = ("rollout",), **options: Any
) -> Scores:
    scorer = Scorer(model, methods, device=CPU, **options)
    for each in batches:
        scorer.add(each)
    return scorer.scores()


def mean_outside(images: Tensor, inside: Tensor) -> Tensor:
    outside = ~inside
    return (images * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True)


def means(scores: Scores, method: str) -> dict[str, float]:
    return {metric: float(values.mean()) for metric, values in scores.values[method].items()}


def test_a_method_that_answers_with_the_mask_scores_one(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = iter([objects(4), objects(2)])

    def answer(model: Classifier, images: Tensor, **options: Any) -> Explanation:
        return Explanation(next(masks).float(), torch.zeros(len(images), 3))

    monkeypatch.setattr(score, "explain_batch", answer)
    found = scored(model, batch(objects(4)), batch(objects(2), 4))
    assert means(found, "rollout") == dict.fromkeys(LOCALIZATION, 1.0)
    intersections, unions = found.overlaps["rollout"]
    assert np.array_equal(intersections, unions)
    # The objects lie in the corners: a map of the centre misses them, and chance hits some.
    assert means(found, "centre")["pointing_game"] == 0
    assert 0 < means(found, "random")["energy_inside"] < 0.5


def test_each_image_has_the_scores_of_its_map_in_patches(model: Classifier) -> None:
    masks = objects(5)
    batches = [batch(masks[:3]), batch(masks[3:], 3)]
    options = {"attribution": {"start_block": 1}}
    found = scored(model, *batches, methods=("attribution",), method_options=options)
    images = torch.cat([each["image"] for each in batches])
    expected = {
        "attribution": explain_batch(model, images, method="attribution", start_block=1).maps,
        "centre": centre_gaussian(2, 3).expand(5, 2, 3),
        "random": explain_batch(model, images, method="random").maps,
    }
    assert found.methods == ("attribution", "centre", "random")
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    for name, maps in expected.items():
        for metric, values in evaluate_maps(maps, masks).items():
            assert found.values[name][metric] == pytest.approx(values.numpy(), abs=1e-6), name
    assert found.area == pytest.approx(masks.double().mean(dim=(1, 2)).numpy())
    assert found.predicted.tolist() == model(images).argmax(dim=1).tolist()


def test_methods_and_both_kinds_of_metrics_in_one_pass(model: Classifier) -> None:
    one = batch(objects(4)) | {"target": torch.tensor([0, 1, 2, -1])}
    found = scored(model, one, methods=("rollout", "attribution", "centre"), faithfulness="zero")
    assert found.methods == ("rollout", "attribution", "centre", "random")
    assert found.metrics == [*LOCALIZATION, *FAITHFULNESS]
    maps = explain_batch(model, one["image"], method="attribution").maps
    for metric, values in Perturbation(model, one["image"], fill="zero").scores(maps).items():
        assert found.values["attribution"][metric] == pytest.approx(values.numpy(), abs=1e-6)
    right = one["target"].numpy() == found.predicted
    assert found.correct.tolist() == right.tolist()
    assert found.wrong.tolist() == [*(~right[:3]).tolist(), False], "an image of unknown class is neither"


@pytest.mark.parametrize(("fill", "for_all", "for_a_map"), [("paper", 2, 56), ("zero", 1, 38)])
def test_the_whole_image_is_asked_once(model: Classifier, fill: Fill, for_all: int, for_a_map: int) -> None:
    asked = []
    model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    one = batch(objects(2))
    scored(model, one, faithfulness=fill)
    assert sum(torch.equal(images, one["image"]) for images in asked) == 1
    # That one made the map; then what docs/scores.md says of a method and two baselines, and object and background.
    assert len(asked) == 1 + for_all + 3 * for_a_map + 2


def test_all_that_is_said_of_the_whole_image_is_of_one_pass(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its arithmetic may be coarse, another pass might say another class."""
    said = torch.tensor([[0.0, 0.1, 9.0], [5.0, 0.0, 0.0]])
    monkeypatch.setattr(score, "explain_batch", lambda *given, **options: Explanation(torch.rand(2, 2, 3), said))
    one = batch(objects(2))
    found = scored(model, one, faithfulness="zero")
    assert found.predicted.tolist() == [2, 0]
    assert found.probability == pytest.approx(said.double().softmax(dim=1).amax(dim=1).numpy())
    inside = one["mask"][:, None]
    object_alone, background_alone = (
        model(images).double().softmax(dim=1)[[0, 1], [2, 0]].detach().numpy()
        for images in (one["image"] * inside, torch.where(inside, mean_outside(one["image"], inside), one["image"]))
    )
    total = found.probability + object_alone - 1 / 3 - background_alone  # p(neither): of fewer than five others
    assert 2 * found.object_worth == pytest.approx(total, abs=1e-6)
    centre = centre_gaussian(2, 3).expand(2, -1, -1)
    deletion = Perturbation(model, one["image"], fill="zero", logits=said).scores(centre)["deletion"]
    assert found.values["centre"]["deletion"] == pytest.approx(deletion.numpy())


def test_without_masks_or_without_a_head(model: Classifier) -> None:
    unmarked = {name: each for name, each in batch(objects(2)).items() if name != "mask"}
    found = scored(model, unmarked, faithfulness="paper")
    assert found.metrics == list(FAITHFULNESS)
    assert np.isnan(found.area).all()
    assert np.isnan(found.background_worth).all()
    headless = Classifier(model.encoder, 0).eval()
    found = scored(headless, batch(objects(2)))
    assert found.metrics == list(LOCALIZATION)
    assert found.predicted.tolist() == [-1, -1]
    assert np.isnan(found.background_worth).all()


def test_images_without_an_object_are_left_out(model: Classifier) -> None:
    masks = objects(4)
    masks[[0, 2]] = False
    mixed = batch(masks)
    kept = {name: values[[1, 3]] for name, values in mixed.items()}
    nothing = batch(torch.zeros(2, 14, 21, dtype=torch.bool), 4)
    found, expected = scored(model, mixed, nothing), scored(model, kept)
    assert found.index.tolist() == [1, 3]
    assert means(found, "rollout") == pytest.approx(means(expected, "rollout"))


def test_without_any_object_there_is_no_score(model: Classifier) -> None:
    with pytest.raises(UserError, match="None of the masks has an object"):
        scored(model, batch(torch.zeros(2, 14, 21, dtype=torch.bool)))


def test_the_best_and_the_worst_are_kept_and_no_more(model: Classifier) -> None:
    batches = []
    for first in (0, 5, 10):
        photos = [torch.full((9, 12, 3), first + number, dtype=torch.uint8) for number in range(5)]
        batches.append(batch(objects(5), first) | {"photo": photos})
    found = scored(model, *batches)
    values = found.values["rollout"]["iou_at_equal_area"]
    best, worst = found.extremes["rollout"]
    assert [shown.value for shown in best] == pytest.approx(sorted(values, reverse=True)[:SHOWN])
    assert [shown.value for shown in worst] == pytest.approx(sorted(values)[:SHOWN])
    for shown in (*best, *worst):
        assert shown.value == pytest.approx(values[shown.number])
        assert (shown.photo == shown.number).all(), "the photograph of another image"
    assert found.ranked_by == "iou_at_equal_area"


def test_names_of_methods() -> None:
    assert chosen_methods(" rollout, attribution,centre") == ["rollout", "attribution", "centre"]
    with pytest.raises(UserError, match="did you mean 'rollout'"):
        chosen_methods("rolout")
