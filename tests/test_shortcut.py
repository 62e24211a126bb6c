"""The shortcut test: its tables from models that were not trained, and, as stress, the real thing."""

from pathlib import Path

import pytest
import torch

from benchmarks import shortcut
from datamodules.scenes import DEMO_SPECIES
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder


def test_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def untrained(folder: Path, confound: float, chosen: object) -> Path:
        torch.manual_seed(int(confound))
        encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), embed_dim=16, depth=2, num_heads=2)
        write_folder(Classifier(encoder, len(DEMO_SPECIES), labels=DEMO_SPECIES), tmp_path / str(confound))
        asked.append(confound)
        return tmp_path / str(confound)

    monkeypatch.setattr(shortcut, "train", untrained)
    energy, reads, *words = shortcut.main(["--scenes", "8", "--out", str(tmp_path / "found.md")])
    assert asked == [0, 1]
    rows = {row[0]: row[1:] for row in energy.rows}
    assert list(rows) == ["rollout", "attribution", "centre", "random"]
    assert rows["centre"][0] == rows["centre"][1], "the two models saw different scenes"
    assert rows["centre"][2] == "0.000 (0.000..0.000)"
    free, tied, lost = (float(cell.split()[0]) for cell in rows["attribution"])
    assert lost == pytest.approx(tied - free, abs=0.0011)
    assert [row[0] for row in reads.rows] == ["top-1", "share of the background", "classes said to read or lean on it"]
    assert len(words) == 2
    assert "energy inside the bird" in (tmp_path / "found.md").read_text()


@pytest.mark.stress
def test_maps_and_words_tell_the_two_models_apart() -> None:
    energy, reads, *_ = shortcut.main([])
    rows = {row[0]: row[3] for row in energy.rows}
    for method in ("rollout", "attribution"):
        mean, bounds = rows[method].split()
        assert float(mean) < 0, method
        assert float(bounds.strip("()").split("..")[1]) < 0, f"the interval of {method} does not exclude zero"
    (_, free, tied) = reads.rows[2]
    assert int(free) <= 1
    assert int(tied) >= 3
