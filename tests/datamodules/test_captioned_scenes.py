"""Scenes with captions: what is said is true of the plan, every wording is known, other scenes stay as they were."""

import hashlib

import numpy as np
import pytest
import torch

from datamodules.captioned_scenes import BirdSceneCaptions
from datamodules.sampling import Draw
from datamodules.scene_plans import plan_scene, wordings
from datamodules.scenes import draw_scene
from vit.foundation import UserError

MODEL = {"image_size": (32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_workers": 0, "batch_size": 4}


@pytest.fixture(scope="module")
def data():
    return BirdSceneCaptions("demo", train_scenes=16, val_scenes=6, **MODEL)


def test_every_caption_is_one_of_its_scenes_wordings():
    for clutter in (True, False):
        for number in range(150):
            plan = plan_scene(0, number, clutter=clutter)
            assert plan.caption in wordings(plan)


def test_wordings_name_what_is_there_and_where():
    seen = set()
    for number in range(200):
        plan = plan_scene(1, number, clutter=False)
        bird, thing = plan.birds[0], plan.thing
        texts = wordings(plan)
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert f"{bird.word} {bird.species}" in text
            assert (thing is None) != (thing is not None and thing.kind in text)
        if thing is not None:
            side = "left of" if bird.center[0] < thing.center[0] else "right of"
            sideways = thing.relation not in ("above", "below")
            assert any(side in text for text in texts) == sideways
            assert any("beside" in text for text in texts) == sideways
            seen.add(thing.relation)
    assert seen == {"left of", "right of", "above", "below", "beside"}


def test_captions_have_many_words_and_few_repeats(data):
    captions = [plan_scene(0, number, clutter=False).caption for number in range(1024)]
    assert len(set(captions)) > 500
    assert len(data.vocabulary) - 4 >= 60
    assert all(data.vocabulary.unknown not in data.vocabulary.encode(text) for text in captions)


def test_without_clutter_nothing_else_changes():
    """The bird, the place and the words' own random numbers are the same; scenes with clutter keep their pixels."""
    for number in range(40):
        full, bare = plan_scene(0, number), plan_scene(0, number, clutter=False)
        assert (full.background, full.label, full.birds[0].bounds) == (
            bare.background,
            bare.label,
            bare.birds[0].bounds,
        )
    image = draw_scene(0, 12, size=64).image
    assert (
        hashlib.sha256(image.tobytes()).hexdigest() == hashlib.sha256(draw_scene(0, 12, clutter=True).image).hexdigest()
    )


def test_a_batch_has_one_caption_to_learn_from_and_all_wordings_to_be_judged_by(data):
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["references"] == [[ids] for ids in batch["ids"]]
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == (4, 32, 32)
    for n in range(4):
        plan = data.dataset("val").plan(n)
        assert data.vocabulary.decode(batch["ids"][n]) == plan.caption
        assert [data.vocabulary.decode(ids) for ids in batch["references"][n]] == wordings(plan)
        assert batch["ids"][n] in batch["references"][n]


def test_each_epoch_has_new_scenes_and_splits_share_none(data):
    scenes = data.dataset("train", augment=True)
    first, again, later = (scenes[Draw(epoch, 3)]["image"] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not np.array_equal(data.dataset("val")[3]["image"], data.dataset("test")[3]["image"])


def test_limit_and_a_known_vocabulary(data):
    again = BirdSceneCaptions("pretrain", vocabulary=data.vocabulary, train_scenes=16, val_scenes=6, **MODEL)
    again.limit(3)
    assert [len(again.names(split)) for split in ("train", "val", "test")] == [3, 3, 3]
    assert again.vocabulary is data.vocabulary
    assert data.longest == max(len(data.vocabulary.encode(text)) for text in data._texts())
    with pytest.raises(UserError, match="no split 'all'"):
        data.dataset("all")
