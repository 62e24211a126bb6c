"""Imports point down, and what is slow to import waits until it is needed."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vit

ROOT = Path(__file__).parents[1]
PACKAGES = ("vit", "datamodules", "wiring")
FILES = [ROOT / "cli.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]

# What each room may import of the project, besides itself.
ROOMS = {
    "vit": set(),
    "vit.foundation": set(),
    "vit.options": {"vit.foundation"},
    "vit.commandline": {"vit.foundation", "vit.options"},
    "vit.terminal": {"vit.foundation"},
    "vit.processes": {"vit.foundation"},
    "vit.network": {"vit.foundation"},
    "vit.layers": set(),
    "vit.models": {"vit.foundation", "vit.layers"},
    "vit.inference": {"vit.foundation", "vit.processes", "vit.layers", "vit.models"},
    "vit.checkpoints": {"vit.foundation", "vit.network", "vit.layers", "vit.models"},
    "vit.saliency": {"vit.foundation", "vit.processes", "vit.layers", "vit.models", "vit.inference"},
    "vit.training": {
        *("vit.foundation", "vit.processes", "vit.layers", "vit.models", "vit.inference", "vit.checkpoints"),
        "vit.saliency",
    },
    "datamodules": {"vit.foundation", "vit.network"},
}
ROOMS["wiring"] = set(ROOMS)
ROOMS["cli"] = set(ROOMS)

# Where each of these libraries may be imported.
LIBRARIES = {
    "lightning": {"vit.training", "datamodules", "wiring", "cli"},
    "pytorch_lightning": set(),
    "timm": {"vit.checkpoints", "vit.training", "datamodules"},
    "transformers": set(),
}
SLOW = {"torch", "torchvision", "torchmetrics", "lightning", "timm", "numpy", "cv2", "PIL", "matplotlib"}
SLOW |= {"albumentations", "captum", "safetensors", "huggingface_hub", "tensorboard", "rich"}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return max((room for room in ROOMS if module == room or module.startswith(f"{room}.")), key=len)


def imports_of(path):
    """The names of all that a file imports, wherever in it: `from vit.models import encoder` is vit.models.encoder."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test can't follow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_ours(name):
    return name.split(".")[0] in {*PACKAGES, "cli"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    room = room_of(module_of(path))
    assert room != "vit" or module_of(path) == "vit", "give the new room a line in ROOMS"
    used = {room_of(name) for name in imports_of(path) if is_ours(name)}
    assert used - {room} <= ROOMS[room]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_libraries_stay_in_their_rooms(path):
    room = room_of(module_of(path))
    for name in imports_of(path):
        assert room in LIBRARIES.get(name.split(".")[0], {room}), f"{name} in {module_of(path)}"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(module_of(path)) == "vit.layers"], ids=module_of)
def test_layers_need_torch_alone(path):
    libraries = {name.split(".")[0] for name in imports_of(path) if not is_ours(name)}
    assert libraries <= {"torch", *sys.stdlib_module_names}


def test_each_file_is_looked_at():
    assert {room_of(module_of(path)) for path in FILES} == set(ROOMS)
    assert imports_of(ROOT / "vit" / "saliency" / "walk.py") >= {
        "torch",
        "torch.Tensor",
        "vit.layers.attention.Recorded",
    }


@pytest.mark.parametrize("module", ["vit", "vit.foundation", "vit.options", "vit.commandline", "cli"])
def test_the_command_line_starts_without_what_is_slow(module):
    program = f"import sys, {module}; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert module.split(".")[0] in loaded
    assert loaded & SLOW == set()


def test_public_names_are_there_when_asked_for():
    assert vit.Classifier is importlib.import_module("vit.models.classifier").Classifier
    assert vit.Encoder is importlib.import_module("vit.models.encoder").Encoder
    assert vit.load is importlib.import_module("vit.checkpoints.anything").load
    assert vit.explain is importlib.import_module("vit.saliency.explain").explain
    assert vit.record is importlib.import_module("vit.saliency.record").record
    assert all(hasattr(vit, name) for name in vit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = vit.explian
