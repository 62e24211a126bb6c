"""docs/checkpoints.md is what the registries say now."""

import typing
from pathlib import Path

import cli
from vit.checkpoints.sources import SOURCES
from vit.checkpoints.table import markdown
from vit.checkpoints.targets import TARGETS
from vit.layers.mlp import ACTIVATIONS
from vit.layers.positions import INTERPOLATIONS
from vit.options import Activation, PosInterpolation

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_page_is_not_stale():
    text = markdown()
    assert PAGE.read_text(encoding="utf-8") == text, "run python -m vit.checkpoints.table docs/checkpoints.md"
    for entry in (*SOURCES, *TARGETS):
        assert f"| {entry.name} |" in text


def test_the_command_line_knows_all_targets():
    hint = typing.get_type_hints(cli.export, vars(cli) | {"Classifier": None})["to"]
    assert typing.get_args(hint) == tuple(target.name for target in TARGETS)


def test_the_command_line_knows_all_filters_of_positions():
    assert set(typing.get_args(PosInterpolation)) == set(INTERPOLATIONS)
    assert set(typing.get_args(Activation)) == set(ACTIVATIONS)
