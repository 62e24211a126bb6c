"""Writes the table of recipes.md from what each YAML of configs/ opens with.

    python docs/recipes.py

A recipe opens with a comment: a sentence that says what it is for; its commands; and, below, what it gave and took,
in numbers.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE, CONFIGS = HERE / "recipes.md", HERE.parent / "configs"
BEGIN, END = "<!-- written by docs/recipes.py: begin -->", "<!-- end -->"


def opening(path: Path) -> tuple[str, str]:
    """(What a recipe is for, what it gave and took), as it says itself."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    paragraphs = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end]).split("\n\n")
    texts = [" ".join(part.split()) for part in paragraphs if not re.match(r"\s*vit ", part)]
    results = [text for text in texts[1:] if re.search(r"\d", text)]
    return " ".join(text for text in texts if text not in results), " ".join(results)


def table() -> str:
    """The table, a row a recipe."""
    rows = ["| recipe | for | what it gave, how long it took |", "|---|---|---|"]
    for path in sorted(CONFIGS.rglob("*.yaml")):
        use, result = opening(path)
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        rows.append(f"| [`{name}`](../configs/{name}.yaml) | {use} | {result or 'not measured yet'} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with the table in its place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
