"""`vit export`, as it is typed: what it writes, and that it writes nothing when it refuses."""

from pathlib import Path

from tests.verbs import Vit, files
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder


def test_export_writes_what_a_library_reads(vit: Vit, trained: Path, tmp_path: Path) -> None:
    for target in ("timm", "transformers", "torchvision"):
        assert vit(f"export {trained}/model --to {target} --out {tmp_path / target}").code == 0
    assert files(tmp_path / "torchvision") == {"README.md", "labels.json", "model.pth"}
    again = vit(f"export {trained}/model --to timm --out {tmp_path}/timm")
    assert again.code == 1
    assert "already holds files" in again.err


def test_a_refused_export_leaves_nothing(vit: Vit, tmp_path: Path) -> None:
    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "act": "quick_gelu"}
    encoder = image_encoder(image_size=(16, 16), patch_size=(8, 8), **shape)
    write_folder(Classifier(encoder, 2, labels=("a", "b")), tmp_path / "model")
    ran = vit(f"export {tmp_path}/model --to torchvision --out {tmp_path}/out")
    assert ran.code == 1
    assert "torchvision can't represent all of this model" in ran.err
    assert not (tmp_path / "out").exists()
