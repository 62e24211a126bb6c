"""Generated scenes as batches."""

import numpy as np
import pytest
import torch

from datamodules.birdscenes import BirdScenes
from datamodules.sampling import Draw
from datamodules.scenes import BACKGROUNDS, DEMO_SPECIES, draw_scene, plan_scene
from vit.foundation import UserError

OPTIONS = {"image_size": (32, 48), "mean": (0.5,) * 3, "std": (0.25,) * 3, "num_workers": 0, "batch_size": 5}


def test_evaluation_batches_have_the_scenes_and_their_masks():
    data = BirdScenes("demo", train_scenes=8, val_scenes=7, seed=3, **OPTIONS)
    assert data.labels == DEMO_SPECIES
    assert data.image_size == (32, 48)
    first, second = data.dataloader("val")
    assert first["image"].shape == (5, 3, 32, 48)
    assert first["mask"].shape == (5, 32, 48)
    assert first["mask"].dtype == torch.bool
    assert second["index"].tolist() == [5, 6]
    assert first["skipped"] == []
    for index in range(5):
        scene = draw_scene(3, 2**40 + index, size=48)
        assert first["target"][index] == scene.label
        assert abs(first["mask"][index].float().mean() - scene.mask.mean()) < 0.02
    square = BirdScenes("demo", train_scenes=8, val_scenes=7, seed=3, **(OPTIONS | {"image_size": (48, 48)}))
    batch = next(iter(square.dataloader("val")))
    scene = draw_scene(3, 2**40, size=48)
    expected = (torch.from_numpy(scene.image.astype(np.float32)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch["image"][0], expected, atol=1e-5, rtol=0)
    assert torch.equal(batch["mask"][0], torch.from_numpy(scene.mask))


def test_evaluation_keeps_the_middle_when_a_model_says_so():
    square = OPTIONS | {"image_size": (48, 48), "val_scenes": 3, "seed": 3}
    whole, middle = (BirdScenes("demo", **square, resize_mode="crop", crop_pct=share).dataset("val")[1]
                     for share in (1.0, 0.5))  # fmt: skip
    # The middle is twice as large: every second pixel is one of the whole scene, but for the filter.
    assert (middle["image"][:, ::2, ::2] - whole["image"][:, 12:36, 12:36]).abs().mean() < 0.15
    assert (middle["image"][:, ::2, ::2] - whole["image"][:, ::2, ::2]).abs().mean() > 0.3
    assert torch.equal(middle["mask"][::2, ::2], whole["mask"][12:36, 12:36])
    assert not torch.equal(middle["mask"], whole["mask"])


def test_each_epoch_brings_new_scenes_and_the_same_ones_again():
    train = BirdScenes("demo", train_scenes=4, val_scenes=4, **OPTIONS).dataset("train")
    scenes = {Draw(epoch, index): train[Draw(epoch, index)] for epoch in range(3) for index in range(4)}
    assert len({item["image"].numpy().tobytes() for item in scenes.values()}) == 12
    for draw, item in scenes.items():
        assert torch.equal(item["image"], train[draw]["image"])
        assert item["target"] == draw_scene(0, draw.epoch * 4 + draw.index, size=32).label


def test_training_is_augmented_and_has_no_masks():
    data = BirdScenes("demo", train_scenes=6, val_scenes=2, **OPTIONS)
    batches = list(data.train_dataloader())
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(6))
    assert "mask" not in batches[0]
    plain = data.dataset("train")
    assert not torch.equal(data.dataset("train", augment=True)[0]["image"], plain[0]["image"])


def test_workers_change_nothing():
    made = []
    for workers in (0, 2):
        options = OPTIONS | {"num_workers": workers, "batch_size": 2}
        loader = BirdScenes("demo", train_scenes=6, val_scenes=2, **options).train_dataloader()
        made.append([(batch["index"].tolist(), batch["image"].numpy().tobytes()) for batch in loader])
    assert made[0] == made[1]


def test_splits_are_disjoint_and_only_training_is_confounded():
    data = BirdScenes("demo", train_scenes=40, val_scenes=40, confound=1.0, **OPTIONS)
    tied = {}
    for split in ("train", "val", "test"):
        dataset = data.dataset(split)
        plans = [
            plan_scene(0, dataset.first + index, species=dataset.species, confound=dataset.confound)
            for index in range(40)
        ]
        tied[split] = sum(plan.background == BACKGROUNDS[plan.label % 4] for plan in plans)
    assert tied["train"] == 40
    assert max(tied["val"], tied["test"]) < 25
    images = {split: data.dataset(split)[0]["image"].numpy().tobytes() for split in tied}
    assert len(set(images.values())) == 3


def test_targets_follow_the_checkpoints_labels_by_name():
    labels = ["another", *reversed(DEMO_SPECIES)]
    data = BirdScenes("demo", train_scenes=8, val_scenes=8, labels=labels, **OPTIONS)
    plain = BirdScenes("demo", train_scenes=8, val_scenes=8, **OPTIONS)
    for index in range(8):
        name = DEMO_SPECIES[plain.dataset("val")[index]["target"]]
        assert labels[data.dataset("val")[index]["target"]] == name


@pytest.mark.parametrize(
    ("which", "options", "expected"),
    [
        ("dmo", {}, "did you mean 'demo'"),
        ("demo", {"train_scenes": 0}, "train_scenes 0"),
        ("demo", {"confound": 1.5}, "confound 1.5"),
        ("demo", {"labels": ["cat", "dog"]}, "has no label for"),
    ],
)
def test_mistakes_are_told_in_few_lines(which, options, expected):
    with pytest.raises(UserError, match=expected) as error:
        BirdScenes(which, **OPTIONS, **options)
    assert len(str(error.value).splitlines()) <= 5


def test_an_unknown_split():
    with pytest.raises(UserError, match="it has: train, val, test"):
        BirdScenes("pretrain", **OPTIONS).dataloader("vla")
