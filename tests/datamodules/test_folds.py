"""Folds: every image is validated once, classes and groups are kept."""

from collections import Counter
from pathlib import Path

import pytest

from datamodules.collection import Record, deal
from vit.foundation import UserError

BASE = Path("/photos")


def records(count: dict[str, int]) -> list[Record]:
    return [Record(f"/photos/{label}/{number}.jpg", (label,)) for label, n in count.items() for number in range(n)]


def test_each_class_is_spread_evenly() -> None:
    pool = records({"a": 10, "b": 7, "c": 5})
    parts = deal(pool, BASE, 5, seed=0)
    for label, least, most in (("a", 2, 2), ("b", 1, 2), ("c", 1, 1)):
        count = Counter(part for part, record in zip(parts, pool, strict=True) if record.labels == (label,))
        assert sorted(count) == [0, 1, 2, 3, 4]
        assert {*count.values()} <= {least, most}
    assert max(Counter(parts).values()) - min(Counter(parts).values()) <= 1


def test_the_deal_follows_the_seed_and_the_names_alone() -> None:
    pool = records({"a": 12, "b": 12})
    parts = deal(pool, BASE, 3, seed=0)
    assert deal(pool, BASE, 3, seed=1) != parts
    moved = [record._replace(path=record.path.replace("/photos", "/elsewhere")) for record in reversed(pool)]
    assert deal(moved, Path("/elsewhere"), 3, seed=0) == parts[::-1]


def test_groups_stay_together() -> None:
    pool = [Record(f"/photos/{n}.jpg", ("ab"[n % 2],), group=f"patient {n // 4}") for n in range(40)]
    parts = deal(pool, BASE, 4, seed=0)
    of_group = {record.group: {part} for part, record in zip(parts, pool, strict=True)}
    for part, record in zip(parts, pool, strict=True):
        assert of_group[record.group] == {part}
    assert len(set(parts)) == 4


def test_a_class_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="b has only one image or group"):
        deal(records({"a": 5, "b": 1}), BASE, 2, seed=0)


def several(*labels: str) -> list[Record]:
    return [Record(f"/photos/{number}.jpg", tuple(each.split())) for number, each in enumerate(labels)]


def lacking(pool: list[Record], parts: list[int], count: int) -> list[set[str]]:
    """The labels that the training images of each fold lack."""
    every = {label for record in pool for label in record.labels}
    kept = [
        {label for part, record in zip(parts, pool, strict=True) if part != number for label in record.labels}
        for number in range(count)
    ]
    return [every - there for there in kept]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_label_that_all_images_have(count: int) -> None:
    pool = several("bird", *(f"bird {('red', 'blue', 'green')[number % 3]}" for number in range(39)))
    parts = deal(pool, BASE, count, seed=0)
    assert lacking(pool, parts, count) == [set()] * count
    assert max(Counter(parts).values()) - min(Counter(parts).values()) <= count


def test_one_image_without_a_label_is_dealt_like_the_others() -> None:
    pool = several("", *("a", "b") * 6)
    assert set(deal(pool, BASE, 2, seed=0)) == {0, 1}


def test_no_fold_trains_without_a_label() -> None:
    """Both images of x are dealt by their rarer labels, so chance may put them into one part."""
    pool = several("a x", "b x", *("a", "b") * 3, "c")
    pool += [pool[-1]._replace(path="/photos/last.jpg")]
    for seed in range(30):
        for count in (2, 3):
            assert lacking(pool, deal(pool, BASE, count, seed), count) == [set()] * count


def test_labels_that_no_two_folds_can_share_are_refused() -> None:
    with pytest.raises(UserError, match="would be in one fold"):
        deal(several("a b", "b c", "a c"), BASE, 2, seed=0)
    parts = deal(several("a b", "b c", "a c"), BASE, 3, seed=0)
    assert sorted(parts) == [0, 1, 2]
