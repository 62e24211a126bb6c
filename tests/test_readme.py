"""The README's commands work as they are written."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import cli
import vit
from vit.checkpoints import canonical
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.variants import variant

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_its_make_targets_exist():
    targets = [line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")]
    assert targets == ["setup", "demo", "test"]
    for target in targets:
        plan = subprocess.run(["make", "-nB", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {"setup": "pip install", "demo": "vit demo --out demo", "test": "pytest"}[target] in plan


@pytest.fixture
def folder_of_a_user(tmp_path, monkeypatch):
    """A folder with `photos` and `vit.safetensors`, as the README assumes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, colour in (("robin", (200, 60, 40)), ("wren", (120, 90, 60))):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{number}.jpg")
    encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), **variant("pico"))
    save_file(canonical.from_ours(Classifier(encoder, 0).state_dict(), "class"), tmp_path / "vit.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_three_commands_and_its_python_run(folder_of_a_user):
    (block,) = [block for block in blocks("bash") if "vit train" in block]
    commands = [shlex.split(line) for line in block.replace("\\\n", "").splitlines() if line.startswith("vit ")]
    assert [words[1] for words in commands] == ["train", "evaluate", "explain"]
    for words in commands:
        assert cli.main(words[1:]) == 0
    for made in ("model/config.json", "curves.png", "val/metrics.json", "maps/contact_sheet.png", "maps/wren/0.npy"):
        assert (folder_of_a_user / "runs" / "photos" / made).is_file()

    (python,) = blocks("python")
    names = {}
    exec(python.replace("target=3", "target=1"), names)
    assert names["maps"].shape == (4, 112, 112)
    assert names["trace"].blocks[-1].q.shape == (4, 4, 197, 32)
    with vit.record(names["model"]) as trace:
        names["model"](names["images"])
    assert trace.blocks[-1].q.shape == (4, 4, 1, 32)  # as is said below the example


def test_each_verb_it_lists_is_one():
    listed = re.findall(r"^\| `vit (\w+)`", README, flags=re.MULTILINE)
    assert listed == list(cli.VERBS)


def test_the_files_it_names_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
