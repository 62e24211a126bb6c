"""Exact and near duplicates: the hash against scipy's, the search against all pairs."""

import io
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from datamodules.doctor.duplicates import (
    MAX_BITS,
    _like_hashes,
    near_duplicates,
    perceptual_hash,
    same_content,
    thumbnail,
)
from datamodules.scenes import DEMO_SPECIES, draw_scene


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(5, number, size=96, species=DEMO_SPECIES).image for number in range(30)]


def test_the_hash_is_that_of_the_textbook(scenes):
    grey = cv2.cvtColor(scenes[0], cv2.COLOR_RGB2GRAY)[:, :64].repeat(2, 1)  # 96 x 128: a multiple of 32
    small = grey.reshape(32, 3, 32, 4).mean((1, 3)).round()
    low = dctn(small, norm="ortho")[:8, :8]
    expected = int("".join("1" if value > np.median(low) else "0" for value in low.ravel()), 2)
    assert (perceptual_hash(grey) ^ expected).bit_count() <= 1  # a coefficient beside the median may round across it
    assert expected.bit_count() == 32


def recompressed(image):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=40)
    return Image.open(out)


COPIES = {
    "compressed": recompressed,
    "half": lambda image: image.resize((48, 48)),
    "squashed": lambda image: image.resize((120, 80)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "cropped": lambda image: image.crop((1, 1, 95, 95)),
}


def described(images):
    images = [np.asarray(image) for image in images]
    looks = [perceptual_hash(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in images]
    return np.array(looks, np.uint64), np.stack([thumbnail(image) for image in images])


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_other_scenes_are_not(scenes, name):
    copies = [COPIES[name](Image.fromarray(scene)) for scene in scenes[:10]]
    looks, thumbs = described([*scenes, *copies])
    splits = np.repeat([0, 1], [30, 10])
    pairs = near_duplicates(looks, thumbs, splits, np.zeros(40, int))
    np.testing.assert_array_equal(pairs.leak[:10], np.arange(30, 40))
    assert (pairs.leak[10:] == -1).all()
    assert (pairs.same == -1).all()
    assert (pairs.conflict == -1).all()


def test_what_is_told_of_a_pair(scenes):
    looks, thumbs = described([scenes[0], scenes[1], scenes[0], scenes[0], scenes[0]])
    pairs = near_duplicates(looks, thumbs, np.array([0, 0, 0, 0, 1]), np.array([0, 1, 0, 1, 0]))
    assert pairs.same.tolist() == [-1, -1, 0, -1, -1]
    assert pairs.conflict.tolist() == [-1, -1, -1, 0, 3]
    assert pairs.leak.tolist() == [4, -1, 4, 4, -1]


def test_like_hashes_in_other_colours_are_no_duplicates(scenes):
    looks, thumbs = described([scenes[0], scenes[0]])
    thumbs[1] = 255 - thumbs[1]
    assert near_duplicates(looks, thumbs, np.zeros(2), np.zeros(2)).same.tolist() == [-1, -1]


def test_the_search_finds_every_pair_within_the_limit_and_no_other(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 12, dtype=np.uint64)
    looks = []
    for number in range(300):
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 8), replace=False))
        looks.append(int(centres[number % 12]) ^ flips)
    looks = np.array(looks, np.uint64)
    pairs = itertools.combinations(range(300), 2)
    expected = {(b, a) for a, b in pairs if int(looks[a] ^ looks[b]).bit_count() <= MAX_BITS}
    assert len(expected) > 500
    for cells in (1 << 21, 1000):
        monkeypatch.setattr("datamodules.doctor.duplicates._CELLS", cells)
        found = [
            pair
            for later, earlier in _like_hashes(looks)
            for pair in zip(later.tolist(), earlier.tolist(), strict=True)
        ]
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_same_content_in_groups():
    content = np.array([7, 5, 7, 9, 5, 7, 5], np.uint64)
    assert [group.tolist() for group in same_content(content, np.array([0, 1, 2, 3, 5, 6]))] == [[1, 6], [0, 2, 5]]
    assert same_content(content, np.array([], np.int64)) == []
