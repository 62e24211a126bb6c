"""The maps of an export as one page that needs no network: thumbnails to sort, filter and browse."""

import base64
import csv
import hashlib
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from vit.foundation import UserError, atomic_write, nearest

SCORES = ("iou_at_equal_area", "insertion")  # the score of a map is the first of these that was measured


class Entry(NamedTuple):
    """A map of the gallery.

    Args:
        name: name of its photograph.
        overlay, thumbnail: pictures, relative to the folder of the page.
        predicted: the predicted label; empty for a model without a head. `probability` belongs to it.
        target: the class that the map explains; empty if the method does not explain a class.
        truth: the true label; empty if it is not known.
        flag: what is wrong with the map.
        score: how good the map is; None if that was not measured.
    """

    name: str
    overlay: Path
    thumbnail: Path
    predicted: str = ""
    probability: float | None = None
    target: str = ""
    truth: str = ""
    flag: str = ""
    score: float | None = None


def read_scores(path: Path, method: str) -> tuple[str, dict[str, float]]:
    """The scores of a method's maps from the scores.csv of `vit score`: (name of the score, image -> score).

    Raises:
        UserError: when the file does not exist, is not such a table, or does not have the method.
    """
    if not path.is_file():
        raise UserError(f"--scores is {path}, but there is no such file.")
    found: dict[str, float] = {}
    methods: dict[str, None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            score = next((name for name in SCORES if name in columns), "")
            if not score or not columns >= {"image", "method"}:
                raise UserError(f"{path} is not a scores.csv of `vit score`: it needs image, method and {SCORES[0]}.")
            for row in rows:
                methods[row["method"]] = None
                if row["method"] == method and row[score]:
                    found[row["image"]] = float(row[score])
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a scores.csv of `vit score`: {error}.") from None
    if method not in methods:
        raise UserError(
            f"{path} has no scores for {method!r}{nearest(method, methods)}.\nIt has: {', '.join(methods) or 'none'}."
        )
    return score, found


def write_gallery(path: Path, entries: Iterable[Entry], *, title: str, score: str = "score") -> None:
    """Writes the page atomically, one entry at a time; `score` is the name of the entries' score.

    The pictures are loaded from the page's folder as they come into view, and nothing is loaded from elsewhere. Names
    and labels are text: whatever they contain, none of it is executed.
    """
    script = _SCRIPT.strip()
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src '{_hash(_STYLE)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>'
            f"<h1>{_text(title)}</h1>{_CONTROLS.replace('SCORE', _text(score.replace('_', ' ')))}<main>\n"
        )
        file.writelines(map(_figure, entries))
        file.write(f"</main>{_VIEWER}\n<script>{script}</script></body></html>\n")


def _figure(entry: Entry) -> str:
    correct = "" if not (entry.truth and entry.predicted) else "right" if entry.truth == entry.predicted else "wrong"
    numbers = {"probability": entry.probability, "score": entry.score}
    data = {"name": entry.name, "label": entry.predicted, "correct": correct}
    data |= {name: f"{value:.6f}" for name, value in numbers.items() if value is not None}
    attributes = "".join(f' data-{name}="{_text(value)}"' for name, value in data.items())
    words = []
    if entry.predicted:
        chance = "" if entry.probability is None else f" {entry.probability:.1%}"
        words.append(f'<b class="{correct}">{_text(entry.predicted)}</b>{chance}')
    if correct == "wrong":
        words.append(f"is {_text(entry.truth)}")
    if entry.target and entry.target != entry.predicted:
        words.append(f"map of {_text(entry.target)}")
    if entry.score is not None:
        words.append(f"score {entry.score:.2f}")
    if entry.flag:
        words.append(f"<i>map is {_text(entry.flag)}</i>")
    return (
        f'<figure{attributes}><a href="{_address(entry.overlay)}"><img loading="lazy" decoding="async" '
        f'src="{_address(entry.thumbnail)}" alt=""></a><figcaption>{_text(entry.name)}<br>{", ".join(words)}'
        "</figcaption></figure>\n"
    )


def _text(text: str) -> str:
    """Text, escaped for the page and its attributes."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def _address(path: Path) -> str:
    """The relative address of a file with any name; it starts with "./", because `a:b` would be a scheme."""
    return escape("./" + quote(os.fsencode(path)))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 0 1rem 2rem; color: #222; background: #fff }
h1 { font-size: 1.2rem; margin: .8rem 0 0; overflow-wrap: anywhere }
form { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center;
  padding: .6rem 0; background: #fff; border-bottom: 1px solid #ccc }
form input[type=number] { width: 4.5rem } form select { max-width: 14rem } output { font-weight: 600 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; padding-top: 1rem }
figure { margin: 0; content-visibility: auto; contain-intrinsic-size: auto 14rem }
figure img { width: 100%; height: 10rem; object-fit: contain; background: #f2f2f2; display: block }
figure a:focus-visible { outline: 3px solid #1a6fd0; display: block }
figcaption { overflow-wrap: anywhere } .wrong { color: #b00020 } .right { color: #1b6e2d }
[hidden] { display: none !important }
dialog { border: 0; padding: .6rem; max-width: 96vw; max-height: 96vh; box-sizing: border-box }
dialog::backdrop { background: rgba(0, 0, 0, .7) }
dialog img { max-width: 92vw; max-height: 84vh; display: block }
"""

_CONTROLS = """<form>
<label>sort by <select id="sort"><option value="name">name</option><option value="label">label</option>
<option value="probability">probability</option><option value="score">SCORE</option></select></label>
<label><input type="checkbox" id="down"> descending</label>
<label>label <select id="label"><option value="">all</option></select></label>
<label id="corrects">prediction <select id="correct"><option value="">all</option><option value="right">right</option>
<option value="wrong">wrong</option></select></label>
<label class="probability">probability <input type="number" id="probability-low" min="0" max="1" step="0.05"> to
<input type="number" id="probability-high" min="0" max="1" step="0.05"></label>
<label class="score">SCORE <input type="number" id="score-low" step="0.05"> to
<input type="number" id="score-high" step="0.05"></label>
<output></output><span>arrow keys move, Enter enlarges, Esc goes back</span></form>"""

_VIEWER = '<dialog><img alt=""><p></p></dialog>'

_SCRIPT = """
"use strict";
const find = id => document.getElementById(id);
const grid = document.querySelector("main"), viewer = document.querySelector("dialog");
const figures = [...grid.querySelectorAll("figure")];
const text = new Intl.Collator(undefined, {numeric: true});
let shown = figures, current = 0;

const number = (figure, name) => figure.dataset[name] === undefined ? NaN : Number(figure.dataset[name]);
const has = name => figures.some(figure => figure.dataset[name]);

function within(figure, name) {
  const [low, high] = ["low", "high"].map(end => find(name + "-" + end).value);
  if (low === "" && high === "") return true;
  const value = number(figure, name);
  return value >= (low === "" ? -Infinity : Number(low)) && value <= (high === "" ? Infinity : Number(high));
}

function compare(a, b) {
  const by = find("sort").value, sign = find("down").checked ? -1 : 1;
  let order = 0;
  if (by === "name" || by === "label") order = sign * text.compare(a.dataset[by], b.dataset[by]);
  else {
    const [x, y] = [number(a, by), number(b, by)];
    order = isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
  }
  return order || text.compare(a.dataset.name, b.dataset.name);
}

function show() {
  const label = find("label").value, correct = find("correct").value;
  shown = figures.filter(figure => (!label || figure.dataset.label === label)
    && (!correct || figure.dataset.correct === correct) && within(figure, "probability") && within(figure, "score"));
  shown.sort(compare);
  grid.replaceChildren();  // moving 10,000 figures one by one takes seconds
  for (const figure of shown) grid.appendChild(figure);
  current = 0;
  document.querySelector("output").textContent = shown.length + " of " + figures.length + " maps";
}

function move(to) {
  if (!shown.length) return;
  current = Math.min(Math.max(to, 0), shown.length - 1);
  if (viewer.open) enlarge();
  else shown[current].querySelector("a").focus();
}

function enlarge() {
  const figure = shown[current];
  viewer.querySelector("img").src = figure.querySelector("a").href;
  viewer.querySelector("p").textContent = figure.querySelector("figcaption").innerText.replace(/\\n/g, ": ");
  if (!viewer.open) viewer.showModal();
}

function columns() {
  const top = shown.length ? shown[0].offsetTop : 0;
  const row = shown.findIndex(figure => figure.offsetTop !== top);
  return row < 0 ? Math.max(shown.length, 1) : row;
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("form")) return;
  const started = viewer.open || grid.contains(document.activeElement);
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns()};
  if (event.key in steps) move(started ? current + steps[event.key] : 0);
  else if (event.key === "Home") move(0);
  else if (event.key === "End") move(shown.length - 1);
  else return;
  event.preventDefault();
});
grid.addEventListener("focusin", event => { current = shown.indexOf(event.target.closest("figure")); });
grid.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  current = shown.indexOf(link.closest("figure"));
  enlarge();
});
viewer.addEventListener("click", () => viewer.close());
viewer.addEventListener("close", () => { if (shown.length) shown[current].querySelector("a").focus(); });
document.querySelector("form").addEventListener("input", show);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());

for (const label of [...new Set(figures.map(figure => figure.dataset.label))].filter(Boolean).sort(text.compare))
  find("label").add(new Option(label, label));
find("corrects").hidden = !has("correct");
for (const name of ["probability", "score"]) {
  document.querySelector("label." + name).hidden = !has(name);
  find("sort").querySelector('[value="' + name + '"]').hidden = !has(name);
}
show();
"""
