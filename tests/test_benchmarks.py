"""The benchmarks run, and their numbers mean what they say: tiny sizes, one round."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import (
    captions,
    checkpoints,
    encoder,
    explain,
    export_memory,
    finetuning,
    loading,
    map_peers,
    pretraining,
    saliency,
    trained,
    training,
)
from benchmarks.harness import Spread, Table, measure, ratio, readable, spread
from benchmarks.memory import ATTRIBUTION, BACKWARD, KEPT_ATTRIBUTION, ROLLOUT, Memory, in_new_process
from benchmarks.ours import classifier
from benchmarks.peers import timm_twin
from benchmarks.textbook import attribution_of_kept_maps, rollout_as_it_goes, rollout_of_kept_maps
from vit.models.encoder import Encoder
from vit.saliency.explain import explain_batch

QUICK = ["--threads", "1", "--rounds", "1", "--warmup", "0"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spreads(table: Table) -> list[Spread]:
    found = [cell for row in table.rows for cell in row if isinstance(cell, Spread)]
    assert all(0 < cell.low <= cell.median <= cell.high for cell in found)
    return found


def test_rounds_take_turns_and_begin_with_another_variant_each() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure(variants, rounds=2, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in timings.items()} == {"a": 2, "b": 2, "c": 2}
    order.clear()
    measure(variants, rounds=2, warmup=1, rotate=False)
    assert "".join(order) == "abc" * 3


def test_a_seldom_variant_runs_in_the_first_rounds_that_count() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure(variants, rounds=3, warmup=1, seldom={"b": 2})
    assert "".join(order) == "ac" + "bca" + "cab" + "ac"
    assert {name: len(seconds) for name, seconds in timings.items()} == {"a": 3, "b": 2, "c": 3}
    assert ratio({"a": [6.0, 4.0], "b": [3.0, 1.0, 9.0]}, "a", "b") == Spread(3.0, 2.0, 4.0)


def test_ratios_are_taken_within_each_round() -> None:
    # The machine became four times as slow in the last round: no ratio may notice.
    timings = {"a": [2.0, 2.2, 8.0], "b": [1.0, 1.0, 4.0]}
    assert ratio(timings, "a", "b") == Spread(2.0, 2.0, 2.2)
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.1e-7, "3.1e-07"), (0.0, "0.000"), (1.0216, "1.022"), (86.54, "86.5"), (12345.6, "12,346"), (-2.5, "-2.500")],
)
def test_readable(value: float, text: str) -> None:
    assert readable(value) == text


def test_trained_tells_what_freezing_saves() -> None:
    (table,) = trained.main([*QUICK, "--variant", "tiny", "--image-size", "32", "--batch", "2"])
    kept = {row[0]: float(str(row[3])) for row in table.rows}
    assert kept["all"] > kept["blocks:6"] > kept["blocks:2"] > kept["head"]
    assert kept["all"] > kept["all, activation checkpointing"]


def test_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "encoder.md"
    out.parent.mkdir()
    out.write_text("# Before\n", encoding="utf-8")
    rates, speeds = encoder.main([*QUICK, "--variant", "tiny", "--image-size", "32", "--batch", "2", "--out", str(out)])
    modes = ["forward, fp32", "forward, bf16", "training step, fp32", "training step, bf16"]
    assert [row[0] for row in rates.rows] == [row[0] for row in speeds.rows] == modes
    assert len(spreads(rates)) == len(spreads(speeds)) == 16
    _, ours, _, theirs, _ = rates.rows[0]
    assert speeds.rows[0][1].median == pytest.approx(ours.median / theirs.median)  # above 1 where ours is faster
    assert "ours / timm" in capsys.readouterr().out
    written = out.read_text(encoding="utf-8")
    assert written.startswith("# Before\n\n## 20")
    for part in (
        "- machine: ",
        "torch " + torch.__version__,
        "- settings: ",
        "python -m benchmarks.encoder --threads 1",
    ):
        assert part in written


def test_encoder_refuses_models_that_differ() -> None:
    ours = classifier("tiny", 32)
    calls, models = encoder.forwards(ours, "tiny")
    images = torch.randn(2, 3, 32, 32)
    assert encoder.largest_difference(calls, images) < 1e-4
    with torch.no_grad():
        models[encoder.TRANSFORMERS].model.vit.layernorm.weight.mul_(1.1)
    with pytest.raises(AssertionError, match="not the same"):
        encoder.largest_difference(calls, images)


def test_saliency(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--variant", "tiny", "--min-seconds", "0", "--agreement", "64"]
    right, times, costs, with_gradients, shares = saliency.main(
        [*QUICK, *small, "--cases", "48x1", "32x2", "--memory", "--attribution", "32x2", "--attribution-memory"]
    )
    difference, of_the_walk, contrast = right.rows[0]
    assert difference < 1e-3
    assert of_the_walk < 1e-5
    assert contrast > 1.5  # an even map would agree with anything
    assert [str(row[0]) for row in times.rows] == ["48 px, batch 1 (10 tokens)", "32 px, batch 2 (5 tokens)"]
    assert len(spreads(times)) == 10
    assert len(spreads(costs)) == 12
    assert len(spreads(with_gradients)) == 4
    assert len(spreads(shares)) == 3
    assert "time in units of our plain forward" in capsys.readouterr().out


def test_maps_equal_the_textbook_for_each_image_of_a_batch() -> None:
    ours = saliency.sharpen(classifier("tiny", 64)).double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    peer = timm_twin(ours, "tiny").double()
    kept, lean = (method(peer, images) for method in (rollout_of_kept_maps, rollout_as_it_goes))
    torch.testing.assert_close(kept.sum(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(lean, kept)
    maps = explain_batch(ours, images, method="rollout").maps.flatten(1)
    torch.testing.assert_close(maps.double(), kept[:, 1:], rtol=1e-5, atol=0)
    assert not torch.allclose(kept[0], kept[1], rtol=1e-2)
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_hooks for block in peer.blocks)


def test_textbook_attribution_equals_ours() -> None:
    ours = saliency.sharpen(classifier("tiny", 64)).double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    expected = attribution_of_kept_maps(timm_twin(ours, "tiny").double(), images)
    maps = explain_batch(ours, images, method="attribution").maps.flatten(1)
    torch.testing.assert_close(maps.double(), expected[:, 1:], rtol=1e-4, atol=1e-9)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2)


def test_maps_that_would_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "in_new_process", lambda name, **sizes: Memory(100.0, 150.0))
    chosen = Namespace(variant="small", threads=1, most_memory=9000.0)
    names = (BACKWARD, ATTRIBUTION, KEPT_ATTRIBUTION)
    table = saliency.memory_table("attribution", names, [saliency.Case(512, 1), saliency.Case(1024, 1)], chosen)
    assert [row[3] for row in table.rows] == [150.0] * 5 + ["not run"]
    assert "9,221" in table.rows[-1][4]  # 2 tensors · 12 blocks · 6 heads · 4,097² tokens · 4 bytes


def test_memory_is_that_of_the_measured_process_alone() -> None:
    filled = torch.ones(800 * 2**20, dtype=torch.uint8)  # the child would inherit these 800 MB as its ru_maxrss
    memory = in_new_process(ROLLOUT, variant="tiny", image_size=64, batch=1, threads=1)
    assert 100 < memory.before < memory.peak < filled.nbytes / 1024**2
    assert memory.increment == memory.peak - memory.before


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--images", "5", "--scene-size", "64", "--variant", "pico", "--image-size", "32", "--batch", "2"]
    rates, shares = explain.main([*QUICK, *sizes, "--photos", "nowhere", "--workers", "0"])
    loop, whole, bare = rates.rows[0]
    assert len(spreads(rates)) == 3
    assert whole.median < loop.median  # the call holds the loop
    assert shares.rows[0][0].median == pytest.approx(loop.median / bare.median)
    printed = capsys.readouterr().out
    assert "5 of 5 generated scenes of 64 px (there is no nowhere)" in printed
    assert "export loop / bare" in printed


def test_loading() -> None:
    sizes = ["--images", "8", "--image-size", "32", "--scenes", "4", "--scene-size", "32", "--batch", "4"]
    reader, large, photos, scenes = loading.main([*QUICK, *sizes, "--photos", "nowhere"])
    for each in (reader, large):
        assert each.rows[0][0] == loading.PILLOW
        assert len(spreads(each)) == 6
    assert [row[0] for row in photos.rows] == ["reading", "reading + training", "reading + evaluation"]
    assert [row[0] for row in scenes.rows] == ["drawing", "drawing + training"]
    assert photos.title == "8 photographs at 32 px"
    assert len(spreads(photos)) == 6
    assert all(row[2] == pytest.approx(1000 / row[1].median) for row in photos.rows)


def test_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, memory = checkpoints.main([*QUICK, "--variant", "tiny"])
    assert len(spreads(seconds)) == 7
    ours, must, *_, over = seconds.rows[0]
    assert over.median == pytest.approx(ours.median / must.median)
    size, before, peak, growth = memory.rows[0]
    assert 20 < size < 25  # 5.7 million parameters
    assert growth == pytest.approx((peak - before) / size)
    assert "growth / file" in capsys.readouterr().out


def test_map_peers() -> None:
    sizes = ["--variant", "tiny", "--image-size", "64", "--peer-rounds", "1"]
    rates, speeds, same = map_peers.main([*QUICK, *sizes])
    assert len(spreads(rates)) == 5
    assert len(spreads(speeds)) == 3
    assert all(difference < 1e-4 for difference in same.rows[0])


def test_export_memory() -> None:
    memory, resumed = export_memory.main(["--images", "60", "--distinct", "3", "--every", "10"])
    assert all(float(row[1]) > 50 for row in memory.rows if row[1])
    logged, files, kept, rows, different, code = (int(row[1]) for row in resumed.rows)
    assert 30 <= logged <= files
    assert logged <= kept <= files
    assert (rows, different, code) == (60, 60, 0)


def test_pretraining_hides_nothing_where_it_says_so(tmp_path: Path) -> None:
    """All patches go through the encoder but in MAE, a quarter of them and the class token."""
    images = torch.randn(2, 3, 16, 16)
    seen: list[int] = []
    count = Encoder.encode

    def counted(encoder: Encoder, tokens: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return count(encoder, tokens, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", counted)
        for call in pretraining.steps("pico", 4, images, 0.75).values():
            call()
    assert seen == [5, 17, 17, 17, 17, 17]  # the decoder's, too, of the first two
    (table,) = pretraining.main([*QUICK, "--image-size", "16", "--patch-size", "4", "--batch", "2"])
    assert [row[0] for row in table.rows] == ["MAE", "nothing hidden", "SimMIM", "classifier"]
    assert len(spreads(table)) == 8


def test_the_pace_is_of_steps_between_the_first_and_the_last() -> None:
    assert training.pace([0, 5, 6, 8, 10, 12, 13]) == 2


def test_training_is_measured_beside_timm_and_the_bare_step(tmp_path: Path) -> None:
    small = ["--photos", str(tmp_path / "none"), "--images", "48", "--batch", "4", "--image-size", "32"]
    rates, ratios = training.main([*QUICK, *small, "--model", "vit_tiny_patch16_224"])
    assert rates.columns == ("ours", "ours, cache", "timm", "timm, prefetcher", "bare")
    best, bare = max(spreads(rates)[2:4], key=lambda rate: rate.median), spreads(rates)[4]
    expected = [ours.median / peer.median for peer in (best, bare) for ours in spreads(rates)[:2]]
    assert [found.median for found in spreads(ratios)] == pytest.approx(expected)


def test_two_sides_are_compared_photo_by_photo(tmp_path: Path) -> None:
    def ran(side: str, seed: int, right: dict[str, list[int]]) -> Path:
        path = tmp_path / f"{side}{seed}.json"
        # Each run names its photos in an order of its own.
        names = ["a", "b", "c", "d"][:: -1 if seed else 1]
        found = {"side": side, "seed": seed, "names": names, "right": right, "processor_seconds": 90.0}
        path.write_text(json.dumps(found))
        return path

    first = [ran("new", 0, {"its own": [1, 1, 1, 0]}), ran("new", 1, {"its own": [0, 1, 1, 1]})]
    second = [ran("old", 0, {"1.0": [0, 0, 1, 0], "0.875": [1, 0, 1, 0]})]
    each, gain = finetuning.compare([*first, *second], resamples=200)
    assert each.rows[0] == ("new", "its own", "[0, 1]", "75.0%", "75.0% 75.0%", "1.5 1.5")
    assert [row[3] for row in each.rows[1:]] == ["25.0%", "50.0%"]
    assert gain.title.startswith("new less old")
    assert gain.rows[0][0] == "25.0"  # b alone sets them apart, in every seed
    assert gain.rows[0][1] == "0.0 to 75.0"
    with pytest.raises(SystemExit, match="runs of new; two sides"):
        finetuning.compare(first)


def test_where_a_caption_names_species_and_background() -> None:
    said = ["a", "flying", "blue", "owl", "left", "of", "a", "kite", ",", "in", "front", "of", "the", "sky"]
    mattered = torch.zeros(len(said))
    mattered[[2, 11]] = torch.tensor([5.0, 3.0])
    assert captions.places(said, mattered) == {"species": 3, "background": 11, "background's last word": 13}
    assert captions.places(["a", "blue", "thing"], torch.ones(3)) == {}
