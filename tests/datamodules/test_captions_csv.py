"""Captions of a CSV: which split, which caption, what a batch holds, and what is refused."""

import cv2
import numpy as np
import pytest
import torch

from datamodules.captions_csv import CaptionsCsv, find_captions
from datamodules.sampling import Draw
from datamodules.vocabulary import Vocabulary
from vit.foundation import UserError

MODEL = {"image_size": (8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), image)
    return tmp_path


def write(folder, lines, header="image,caption,split"):
    (folder / "captions.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(folder / "captions.csv")


def lines(count=10):
    return [f'photos/{number}.png,"a bird, number {number}",' for number in range(count)]


def data(folder, rows, **options):
    return CaptionsCsv(write(folder, rows), **{**MODEL, "batch_size": 4, "num_workers": 0, **options})


def test_splits_of_the_csv_are_kept(folder):
    rows = [
        "photos/0.png,a,train",
        "photos/1.png,b,val",
        "photos/2.png,c,test",
        "photos/0.png,d,train",
        "photos/1.png,e,",
    ]
    write(folder, rows)
    found = find_captions(folder / "captions.csv", val_fraction=0.2, seed=0)
    assert {split: list(captions.values()) for split, captions in found.items()} == {
        "train": [["a", "d"]], "val": [["b", "e"]], "test": [["c"]],
    }  # fmt: skip


def test_without_splits_some_images_are_held_with_all_their_captions(folder):
    rows = [*lines(), *(f"photos/{number}.png,a second one," for number in range(10))]
    found = data(folder, rows).captions
    assert {split: len(images) for split, images in found.items()} == {"train": 8, "val": 2}
    assert not set(found["train"]) & set(found["val"])
    assert all(len(captions) == 2 for images in found.values() for captions in images.values())
    assert data(folder, rows).captions == found
    assert any(data(folder, rows, seed=seed).captions != found for seed in (1, 2))


def test_a_batch_holds_images_ids_and_all_references(folder):
    rows = [*lines(), "photos/3.png,another one,"]
    module = data(folder, rows, val_fraction=0.5)
    batches = list(module.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4, 1]
    for batch in batches:
        assert batch["image"].shape[1:] == (3, 8, 8)
        for index, ids, references in zip(batch["index"], batch["ids"], batch["references"], strict=True):
            captions = list(module.captions["train"].values())[index]
            assert [module.vocabulary.decode(each) for each in references] == captions
            assert ids in references
    assert module.longest == len(module.vocabulary.encode("a bird, number 1")) == 7


def test_which_caption_is_drawn_follows_from_seed_epoch_and_index(folder):
    rows = [f"photos/0.png,caption {word},train" for word in "abcdef"]
    module = data(folder, rows)
    drawn = [module.dataset("train", augment=True)[Draw(epoch, 0)]["ids"] for epoch in range(40)]
    torch.rand(3)
    assert [module.dataset("train", augment=True)[Draw(epoch, 0)]["ids"] for epoch in range(40)] == drawn
    assert len({tuple(ids) for ids in drawn}) == 6
    plain = [module.dataset("train")[Draw(epoch, 0)] for epoch in range(5)]
    assert {tuple(item["ids"]) for item in plain} == {tuple(module.vocabulary.encode("caption a"))}
    assert all(torch.equal(item["image"], plain[0]["image"]) for item in plain)


def test_words_are_of_train_alone_or_of_a_checkpoint(folder):
    rows = ["photos/0.png,a robin,train", "photos/1.png,a heron,val"]
    module = data(folder, rows)
    assert module.vocabulary.unknown in module.vocabulary.encode("a heron")
    given = Vocabulary.train(["heron"])
    assert data(folder, rows, vocabulary=given).vocabulary is given
    rows = ["photos/1.png,a heron,test"]
    assert len(data(folder, rows, vocabulary=given).dataset("test")) == 1
    with pytest.raises(UserError, match="no training captions"):
        data(folder, rows)


def test_unreadable_images_are_skipped_and_listed(folder):
    (folder / "photos" / "1.png").write_bytes(b"")
    (batch,) = data(folder, ["photos/0.png,a,train", "photos/1.png,b,train", "photos/2.png,c,val"]).train_dataloader()
    assert len(batch["image"]) == len(batch["ids"]) == len(batch["references"]) == 1
    assert [skipped.path.endswith("1.png") for skipped in batch["skipped"]] == [True]


def test_a_batch_of_nothing_is_empty(folder):
    (folder / "photos" / "0.png").write_bytes(b"")
    (batch,) = data(folder, ["photos/0.png,a,train", "photos/2.png,c,val"]).train_dataloader()
    assert batch["image"].shape == (0, 3, 8, 8)
    assert batch["ids"] == batch["references"] == []


def test_workers_change_nothing(folder):
    def batches(workers):
        return list(data(folder, lines(), num_workers=workers).train_dataloader())

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one["image"], two["image"])
        assert one["ids"] == two["ids"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["photos/0.png,,train"], r"line 2: no caption"),
        (["photos/0.png,a,train", ",b,train"], r"line 3: no image"),
        (["photos/0.png,a,tarin"], r"line 2: split 'tarin' is not one of train, val, test"),
        (["photos/0.png,a,train", "photos/./0.png,b,val"], r"line 3: photos/./0.png is in val and in train"),
        ([], "lists no images"),
    ],
)
def test_lines_of_no_use_are_refused(folder, rows, message):
    with pytest.raises(UserError, match=message) as error:
        data(folder, rows)
    assert len(str(error.value).splitlines()) <= 5


def test_files_that_are_no_captions_are_refused(folder):
    with pytest.raises(UserError, match=r"no column 'caption' \(did you mean 'captions'\?\); its first line"):
        CaptionsCsv(write(folder, ["a,b"], header="image,captions"), **MODEL)
    with pytest.raises(UserError, match=r"Can't read .*none.csv: No such file"):
        CaptionsCsv(str(folder / "none.csv"), **MODEL)
    with pytest.raises(UserError, match="has no split 'test'; it has: train, val"):
        data(folder, lines()).dataset("test")


def test_captions_that_are_no_unicode_become_some(folder):
    (folder / "captions.csv").write_bytes(b"image,caption\nphotos/0.png,caf\xe9\nphotos/1.png,tea\n")
    module = CaptionsCsv(str(folder / "captions.csv"), **MODEL)
    texts = [text for images in module.captions.values() for captions in images.values() for text in captions]
    assert sorted(texts) == ["caf\ufffd", "tea"]
