"""The recipes in configs/: each says how it is used, and can be used so."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import cli
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.resume import flat

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))

# What makes any recipe a matter of a second.
SMALL = shlex.split(
    "--trainer.max_epochs 1 --trainer.precision fp32 --data.batch_size 4 --data.num_workers 0 --data.train_scenes 8"
    " --data.val_scenes 4 --model.variant pico --model.image_size 32 --device cpu"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label, brightness in (("bright", 200), ("dark", 50)):
        (root / label).mkdir()
        for number in range(4):
            Image.fromarray(np.full((40, 48, 3), brightness + number, np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = image_encoder(image_size=(16, 16), patch_size=(8, 8), embed_dim=16, depth=4, num_heads=2)
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    write_folder(Classifier(encoder, 3, labels=["a", "b", "c"]), folder)
    return folder


def opening(recipe: str) -> list[str]:
    """The comment that a recipe begins with, without its signs."""
    lines = (CONFIGS / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#") for line in lines[:end]]


def commands(recipe: str) -> list[list[str]]:
    """The words of each command in that comment, after `vit`."""
    text = re.sub(r"\\\n\s*", "", "\n".join(opening(recipe)))
    return [shlex.split(line) for line in re.findall(r"^   vit (.*)$", text, flags=re.MULTILINE)]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    capsys.readouterr()
    assert cli.main([*words, "--print_config"]) == 0
    options: dict[str, object] = yaml.safe_load(capsys.readouterr().out)
    return options


def test_there_are_recipes() -> None:
    assert {"classify/finetune", "demo/finetune"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_opens_with_what_it_is_for_and_its_command(recipe: str) -> None:
    about = opening(recipe)[0].strip()
    assert about
    assert about[0].isupper()
    assert commands(recipe)
    for words in commands(recipe):
        assert words[:3] == ["train", "--config", recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe_is_an_option_and_arrives(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = printed(capsys, "train", "--config", recipe, "--run", "r")
    given = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text(encoding="utf-8"))
    arrived = flat(options)
    for name, value in flat(given).items():
        # YAML takes 1e-3 for text, the options for a number.
        assert arrived[name] == (float(value) if re.fullmatch(r"[\d.]+e-?\d+", str(value)) else value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_found_by_its_short_name_and_by_its_path(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_path = printed(capsys, "train", "--config", str(CONFIGS / f"{recipe}.yaml"), "--run", "r")
    monkeypatch.chdir(tmp_path)  # wherever one stands
    assert printed(capsys, "train", "--config", recipe, "--run", "r") == by_path


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_of_a_recipe_run_as_they_are_written(
    recipe: str, photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the names that stand for the user's own files, and on less."""
    own = {"photos": photos, "vit.safetensors": checkpoint, "CHECKPOINT": checkpoint}
    own["vit/assets/birdscenes"] = cli.DEMO_CHECKPOINT
    monkeypatch.chdir(tmp_path)
    for words in commands(recipe):
        assert cli.main([*(str(own.get(word, word)) for word in words), *SMALL]) == 0
        run = Path(words[words.index("--run") + 1])
        assert (run / "model" / "model.safetensors").is_file()
