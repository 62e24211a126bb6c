"""Scenes are a pure function of (seed, index), their masks are exact and their captions true."""

import hashlib
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.backgrounds import PAINTERS
from datamodules.birds import COLOURS
from datamodules.scenes import (
    BACKGROUNDS,
    DEMO_SPECIES,
    PRETRAIN_SPECIES,
    SPECIES,
    draw_scene,
    plan_scene,
    render_plan,
)
from datamodules.shapes import Drawing

ROOT = Path(__file__).resolve().parents[2]


def digest(scene) -> str:
    """One hash of all that is in a scene."""
    parts = [
        scene.image.tobytes(),
        scene.mask.tobytes(),
        repr((scene.label, scene.background, scene.caption)).encode(),
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(11, index) for index in range(200)]


@pytest.fixture(scope="module")
def plans():
    return [plan_scene(12, index) for index in range(640)]


def spread(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def test_lists_of_species():
    assert len(SPECIES) >= 16
    assert len(DEMO_SPECIES) == 8
    assert len(PRETRAIN_SPECIES) >= 12
    assert not set(DEMO_SPECIES) & set(PRETRAIN_SPECIES)
    assert set(BACKGROUNDS) == set(PAINTERS)


def test_plumages_name_known_colours():
    fields = {"body", "belly", "head", "wing", "tail", "accent", "bill", "legs", "eye"}
    for species in SPECIES.values():
        for mark in species.marks:
            assert mark.colour in fields | set(COLOURS)
        for plumage in species.plumages:
            assert {getattr(plumage, name) or plumage.body for name in fields} <= set(COLOURS)


def test_arrays_have_their_shapes(scenes):
    scene = scenes[0]
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (64, 64)
    assert scene.mask.dtype == bool
    assert len(scene.birds) == 1
    assert (scene.birds[0].mask == scene.mask).all()


def test_same_seed_and_index_in_any_order_give_the_same_bytes():
    forward = [digest(draw_scene(5, index)) for index in range(12)]
    np.random.seed(99)  # noqa: NPY002 (the global generator must not matter)
    backward = [digest(draw_scene(5, index)) for index in reversed(range(12))]
    assert forward == backward[::-1]


def test_another_process_with_other_threads_gives_the_same_bytes():
    code = (
        "import hashlib, cv2, numpy as np; cv2.setNumThreads(2); np.random.seed(3)\n"
        "from datamodules.scenes import draw_scene\n"
        "images = [draw_scene(5, index, size=96).image for index in (7, 2, 4)]\n"
        "print([hashlib.sha256(image.tobytes()).hexdigest() for image in images])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    here = [hashlib.sha256(draw_scene(5, index, size=96).image.tobytes()).hexdigest() for index in (7, 2, 4)]
    assert answer.stdout.strip() == repr(here)


def test_seeds_and_indices_give_different_scenes(scenes):
    assert len({digest(scene) for scene in scenes}) == len(scenes)
    assert digest(draw_scene(6, 0)) != digest(draw_scene(5, 0))


@pytest.mark.parametrize("two_birds", [False, True])
@pytest.mark.parametrize("size", [64, 112])
def test_mask_is_what_the_birds_change(size, two_birds):
    for index in range(16):
        plan = plan_scene(21, index, species=DEMO_SPECIES + PRETRAIN_SPECIES, two_birds=two_birds)
        plan = replace(plan, front=Drawing())
        full, empty = render_plan(plan, size), render_plan(plan, size, with_birds=False)
        change = np.abs(full.image.astype(int) - empty.image.astype(int)).max(axis=2)
        assert (full.mask == empty.mask).all()
        assert change[~spread(full.mask, 2)].max() == 0
        assert (change[full.mask] > 4).mean() > 0.9
        outside_only_as_an_edge = change[~spread(full.mask, 1)] > 40
        assert outside_only_as_an_edge.sum() <= 3


def test_foreground_is_taken_out_of_the_mask():
    fewer = 0
    for plan in (plan_scene(22, index) for index in range(40)):
        if plan.front.polygons:
            bare = render_plan(replace(plan, front=Drawing()), 64)
            seen = render_plan(plan, 64)
            empty = render_plan(plan, 64, with_birds=False)
            assert not (seen.mask & ~bare.mask).any()
            assert (seen.image == empty.image)[~spread(bare.mask, 2)].all()
            fewer += seen.mask.sum() < bare.mask.sum()
    assert fewer > 3


def test_birds_cover_a_sensible_part_of_the_frame(scenes):
    coverage = np.array([scene.mask.mean() for scene in scenes])
    assert coverage.min() > 0.03
    assert coverage.max() < 0.27
    assert np.mean((coverage > 0.06) & (coverage < 0.25)) > 0.95
    assert 0.08 < np.median(coverage) < 0.2


@pytest.mark.parametrize("species", [DEMO_SPECIES, PRETRAIN_SPECIES])
def test_the_centre_is_a_poor_guess(species):
    hits = [draw_scene(31, index, species=species).mask[32, 32] for index in range(120)]
    assert np.mean(hits) < 0.3


def test_birds_are_found_all_over_the_frame(plans):
    centers = np.array([plan.birds[0].center for plan in plans])
    assert (centers.min(axis=0) < 0.25).all()
    assert (centers.max(axis=0) > 0.75).all()
    assert (centers.std(axis=0) > 0.11).all()


def test_labels_are_balanced(plans):
    labels = [plan.label for plan in plans]
    assert set(Counter(labels).values()) == {len(plans) // len(DEMO_SPECIES)}
    assert labels[:16] != sorted(labels[:16])
    assert all(plan.birds[0].species == DEMO_SPECIES[plan.label] for plan in plans)


def test_background_is_independent_of_the_species_without_confound(plans):
    table = np.zeros((len(DEMO_SPECIES), len(BACKGROUNDS)))
    for plan in plans:
        table[plan.label, BACKGROUNDS.index(plan.background)] += 1
    assert (table > 0).all()
    expected = len(plans) / table.size
    # 31 degrees of freedom: 99.9 % of independent tables stay below 61.1.
    assert ((table - expected) ** 2 / expected).sum() < 61.1


@pytest.mark.parametrize(("confound", "low", "high"), [(1.0, 1.0, 1.0), (0.9, 0.88, 0.97), (0.5, 0.53, 0.72)])
def test_confound_ties_the_background_to_the_species(confound, low, high):
    tied = [
        plan.background == BACKGROUNDS[plan.label % 4]
        for plan in (plan_scene(13, index, confound=confound) for index in range(240))
    ]
    assert low <= np.mean(tied) <= high


def test_confound_changes_nothing_but_the_background():
    for index in range(20):
        free, tied = plan_scene(14, index), plan_scene(14, index, confound=1.0)
        assert free.label == tied.label
        assert free.birds[0].bounds == tied.birds[0].bounds
        assert free.birds[0].word == tied.birds[0].word


def test_every_species_stands_on_every_background():
    seen = {(plan.background, plan.birds[0].species) for plan in (plan_scene(15, i) for i in range(280))}
    assert len(seen) == len(DEMO_SPECIES) * len(BACKGROUNDS)


def test_relations_in_captions_are_true(plans):
    counts: Counter[str] = Counter()
    for plan in plans[:200]:
        bird = plan.birds[0]
        assert f"{bird.word} {bird.species}" in plan.caption
        if plan.thing is None:
            assert "," not in plan.caption
            continue
        relation, (x, y) = plan.thing.relation, plan.thing.center
        counts[relation] += 1
        assert f" {relation} a" in plan.caption
        assert plan.thing.kind in plan.caption
        ys, xs = np.nonzero(render_plan(plan, 48).mask)
        dx, dy = x - (np.mean(xs) + 0.5) / 48, y - (np.mean(ys) + 0.5) / 48
        true = {
            "left of": dx > 0,
            "right of": dx < 0,
            "above": dy > 0,
            "below": dy < 0,
            "beside": abs(dx) > 0.05,
        }
        assert true[relation]
    assert min(counts[relation] for relation in ("left of", "right of", "above", "below", "beside")) > 5


def test_attitudes_in_captions_are_true(plans):
    for plan in plans:
        for word in ("flying", "soaring", "perched", "standing", "swimming"):
            assert (word not in plan.caption) or plan.birds[0].pose.kind == word


def test_captions_are_many():
    captions = [
        plan_scene(16, index, species=species).caption
        for species in (DEMO_SPECIES, PRETRAIN_SPECIES)
        for index in range(350)
    ]
    assert len(set(captions)) > 500
    assert len({word for caption in captions for word in caption.replace(",", "").split()}) >= 60


def test_two_birds_stay_in_their_halves():
    for index in range(24):
        scene = draw_scene(17, index, two_birds=True)
        first, second = scene.birds
        assert first.species == scene.species == DEMO_SPECIES[scene.label]
        assert second.species != first.species
        assert first.mask.any()
        assert second.mask.any()
        assert not first.mask[:, 32:].any()
        assert not second.mask[:, :32].any()
        assert (scene.mask == (first.mask | second.mask)).all()
        assert f"{first.species} left of" in scene.caption


@pytest.mark.parametrize("size", [32, 64, 97, 128, 224])
def test_sizes_show_the_same_composition(size):
    for index in range(3):
        plan = plan_scene(18, index)
        reference, scene = render_plan(plan, 64), render_plan(plan, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.caption == reference.caption
        small = cv2.resize(scene.mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) > 0.5
        overlap = (small & reference.mask).sum() / (small | reference.mask).sum()
        assert overlap > 0.8
        colours = [
            cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).astype(int)
            for image in (scene.image, reference.image)
        ]
        assert np.abs(colours[0] - colours[1]).mean() < 14


def test_speed():
    draw_scene(19, 0)
    start = time.process_time()
    for index in range(100):
        draw_scene(19, index)
    rate = 100 / (time.process_time() - start)
    print(f"{rate:.0f} scenes of 64 px a CPU second")
    assert rate > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 31}, "size is 31.*at least 32"),
        ({"species": ("robbin", "owl")}, "unknown species 'robbin' \\(did you mean 'robin'"),
        ({"species": ()}, "list of one or more"),
        ({"species": "owl"}, "list of one or more"),
        ({"confound": 1.5}, r"confound is 1.5; it must be in \[0, 1\]"),
        ({"confound": float("nan")}, "confound is nan"),
        ({"species": ("owl",), "two_birds": True}, "two different species"),
        ({"seed": -1}, "seed is -1"),
        ({"index": -2}, "index -2"),
    ],
)
def test_bad_requests_say_what_is_allowed(options, message):
    request = {"seed": 0, "index": 0, **options}
    with pytest.raises(ValueError, match=message):
        draw_scene(request.pop("seed"), request.pop("index"), **request)
