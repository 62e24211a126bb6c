"""The log of an export: torn lines are dropped, and what does not fit is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.neighbours import Neighbours
from vit.saliency.export_log import LOG, ExportLog, fingerprint

OPTIONS = {"--method": "rollout", "--full": False}
NAMES = [Path("a"), Path("b/c"), Path(os.fsdecode(b"latin-\xe9"))]


def opened(folder: Path, *, resume: bool = True, model: str = "m", **options: Any) -> ExportLog:
    return ExportLog(folder, model, {**OPTIONS, **options}, resume=resume)


def fill(folder: Path) -> None:
    with opened(folder) as log:
        for number, name in enumerate(NAMES):
            log.add(name, [str(name), number])


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    fill(tmp_path)
    with opened(tmp_path) as log:
        assert [row for _, row in log.rows([NAMES[2], Path("other"), NAMES[0]])] == [[str(NAMES[2]), 2], ["a", 0]]
        assert Path("other") not in log
        log.add(NAMES[0], ["again", 7])
        assert list(log.rows(NAMES[:1])) == [(NAMES[0], ["again", 7])]
    with opened(tmp_path, resume=False) as log:
        assert not any(name in log for name in NAMES)


def test_a_map_is_kept_if_it_is_of_this_photograph(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.add(Path("a"), ["a.jpg", 1], "1 2")
    with opened(tmp_path) as log:
        assert log.keep(Path("a"), "a.jpg", "1 2")
        assert not log.keep(Path("b"), "b.jpg", "1 2")
        assert not log.keep(Path("a"), "a.png", "1 2")
        assert Path("a") not in log, "it is forgotten"
    with opened(tmp_path) as log:
        assert not log.keep(Path("a"), "a.jpg", "1 3")
        assert list(log.rows([Path("a")])) == []


def test_a_log_of_nothing_is_taken_away(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert (tmp_path / LOG).is_file()
    assert list(tmp_path.iterdir()) == []


def test_any_torn_end_is_dropped(tmp_path: Path) -> None:
    """The log cut at each of its bytes: what is whole counts, and what is added afterwards can be read."""
    fill(tmp_path)
    whole = (tmp_path / LOG).read_bytes()
    for length in range(len(whole)):
        (tmp_path / LOG).write_bytes(whole[:length])
        with opened(tmp_path) as log:
            found = [name for name in NAMES if name in log]
            assert found == NAMES[: max(whole[:length].count(b"\n") - 1, 0)]
            log.add(NAMES[2], ["new"])
            assert [row for _, row in log.rows(NAMES)] == [
                *([str(name), n] for n, name in enumerate(found)), ["new"],
            ]  # fmt: skip
        assert all(json.loads(line) for line in (tmp_path / LOG).read_text().splitlines())


def test_other_maps_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="nothing to resume"):
        opened(tmp_path)
    (tmp_path / "mine.txt").unlink()
    fill(tmp_path)
    before = (tmp_path / LOG).read_bytes()
    for changed, words in (
        ({"model": "n"}, "another model: the sha256 of its weights and shape is m"),
        ({"--full": True}, "other options: --full was False, is True"),
        ({"--rollout.residual": 0.5}, "--rollout.residual was None, is 0.5"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            opened(tmp_path, **changed)
        assert len(str(refused.value).splitlines()) <= 5
    assert (tmp_path / LOG).read_bytes() == before
    (tmp_path / LOG).write_text('{"format": 0}\n')
    with pytest.raises(UserError, match="another version"):
        opened(tmp_path)


def test_a_fingerprint_changes_with_each_weight_and_label() -> None:
    def of(change: float = 0.0, labels: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = torch.float32) -> str:
        model = made(labels=labels)
        model.head.weight.data[1, 2] += change
        return fingerprint(model.to(dtype))

    assert of() == of()
    assert len({of(), of(1e-6), of(labels=("b", "a")), of(dtype=torch.bfloat16)}) == 4


def test_a_fingerprint_changes_with_the_neighbours() -> None:
    found = set()
    for place, share in ((None, 0.5), (0, 0.5), (1, 0.5), (0, 0.4)):
        model = made()
        if place is not None:
            targets = torch.zeros(2, model.num_classes)
            targets[:, place] = 1
            model.neighbours = Neighbours(torch.ones(2, model.num_features), targets, share=share)
        found.add(fingerprint(model))
    assert len(found) == 4


def test_a_fingerprint_changes_with_what_the_weights_do_not_tell() -> None:
    others = [{"num_heads": 1}, {"act": "quick_gelu"}, {"norm_eps": 1e-5}, {"pool": "mean"}, {"multilabel": True}]
    assert len({fingerprint(made(**other)) for other in [{}, *others]}) == 1 + len(others)
    # A head as wide reads two blocks, or two parts of one.
    assert fingerprint(made(pool_blocks=2)) != fingerprint(made(pool="class+mean"))


def made(**options: Any) -> Classifier:
    """A model whose weights are all zero, whatever else it is."""
    outer = {name: options.pop(name) for name in ("pool", "pool_blocks", "multilabel", "labels") if name in options}
    sizes = {"image_size": (14, 21), "patch_size": (7, 7), "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = Classifier(image_encoder(**{**sizes, **options}), 2, **outer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model
