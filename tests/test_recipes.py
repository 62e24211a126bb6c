"""The table of recipes says what the recipes say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_is_what_the_recipes_open_with() -> None:
    specification = importlib.util.spec_from_file_location("recipes", DOCS / "recipes.py")
    assert specification
    assert specification.loader
    recipes = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recipes)
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert recipes.page(text) == text, "run: python docs/recipes.py"
    for name in ("classify/finetune", "debug"):
        assert f"| [`{name}`](../configs/{name}.yaml) |" in text
    assert "vit train --config classify/finetune --data.root photos --model" not in recipes.table()
