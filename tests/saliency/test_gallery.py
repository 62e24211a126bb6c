"""The page of an export: whatever names hold is text, and a real browser sorts, filters and leafs through it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from vit.foundation import UserError
from vit.saliency.gallery import Entry, read_scores, write_gallery
from vit.saliency.render import save_overlay

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=document.title='hacked'>\"'&.jpg"
ENTRIES = [
    Entry("a/10.jpg", Path("a/10.png"), Path("t/a/10.jpg"), "crow", 0.5, "", "crow", score=0.75),
    Entry("a/9.jpg", Path("a/9.png"), Path("t/a/9.jpg"), "crow", 0.9, "wren", "wren", score=0.25),
    Entry("b/1.jpg", Path("b/1.png"), Path("t/b/1.jpg"), "wren", 0.125, "wren", "wren", "all zero"),
    Entry(HOSTILE, Path("c#%?.png"), Path("t/c#%?.jpg"), HOSTILE, 0.625),
]


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The gallery of ENTRIES, with its pictures."""
    for entry in ENTRIES:
        for path in (entry.overlay, entry.thumbnail):
            save_overlay(tmp_path / path, np.full((8, 12, 3), 200, np.uint8))
    write_gallery(tmp_path / "gallery.html", ENTRIES, title=f"Maps {HOSTILE}", score="iou_at_equal_area")
    return tmp_path / "gallery.html"


def test_what_names_hold_is_text(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    assert len(found.of("script")) == 1
    assert [len(found.of(tag)) for tag in ("figure", "img", "a")] == [4, 5, 4]  # one picture is the viewer's
    assert {name for tag, attributes in found.elements for name in attributes if name.startswith("on")} == set()
    assert HOSTILE in found.words
    last = found.of("figure")[3]
    assert last == {"data-name": HOSTILE, "data-label": HOSTILE, "data-correct": "", "data-probability": "0.625000"}


def test_pictures_are_beside_the_page_and_fetched_lazily(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    thumbnails, links = found.of("img")[:4], found.of("a")
    assert all(picture["loading"] == "lazy" for picture in thumbnails)
    addresses = [str(each["src"]) for each in thumbnails] + [str(each["href"]) for each in links]
    assert all(address.startswith("./") and not set(address) & set("#?:") for address in addresses)
    assert all((page.parent / unquote(address)).is_file() for address in addresses)
    assert not re.search(r"https?:|//[a-z]", page.read_text(encoding="utf-8"))


def test_scores_of_a_method_are_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("image,method,insertion\nx.jpg,rollout,0.5\nx.jpg,legrad,0.25\ny.jpg,rollout,\n")
    assert read_scores(path, "rollout") == ("insertion", {"x.jpg": 0.5})
    with pytest.raises(UserError, match=r"no scores for 'legrat' \(did you mean 'legrad'\?\)"):
        read_scores(path, "legrat")
    for text in ("image,method\nx.jpg,rollout\n", "image,method,insertion\nx.jpg,rollout,much\n", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"is not a scores\.csv"):
            read_scores(path, "rollout")
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "none.csv", "rollout")


# Run in the page, after its own script; `tell` says what is to be seen, by the names of the photographs.
ACTS = """
const told = [];
const names = () => [...document.querySelectorAll("figure")].filter(f => !f.hidden).map(f => f.dataset.name);
const set = (id, value) => {
  const field = document.getElementById(id);
  if (field.type === "checkbox") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};
const press = key => (document.activeElement || document.body).dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const focused = () => document.activeElement.closest("figure")?.dataset.name;
const large = () => decodeURI(document.querySelector("dialog img").src).split("/").pop();
const tell = (what, value) => told.push([what, value]);

tell("hidden", [...document.querySelectorAll("[hidden]")].length);
tell("labels", [...document.getElementById("label").options].map(option => option.value));
tell("by name", names());
set("sort", "probability"); tell("by probability", names());
set("down", true); tell("down", names());
set("sort", "score"); tell("by score, down", names());
set("down", false); set("sort", "label"); tell("by label", names());
set("sort", "name");
set("correct", "wrong"); tell("wrong", names());
set("correct", "right"); tell("right", names());
set("label", "crow"); tell("right crows", names());
set("correct", ""); set("label", "");
set("probability-low", "0.5"); set("probability-high", "0.7"); tell("0.5 to 0.7", names());
set("probability-low", ""); set("probability-high", "");
set("score-low", "0.3"); tell("score from 0.3", names());
set("score-low", ""); tell("count", document.querySelector("output").textContent);
press("ArrowRight"); tell("first", focused());
press("ArrowRight"); tell("second", focused());
press("End"); tell("last", focused());
press("ArrowRight"); tell("still last", focused());
press("Home"); document.activeElement.click();
tell("open", [document.querySelector("dialog").open, large(), document.querySelector("dialog p").textContent]);
press("ArrowRight"); tell("next", large());
document.querySelector("dialog").close();
tell("closed", document.querySelector("dialog").open);
document.body.dataset.told = JSON.stringify(told);
"""


def shown_by_the_browser(page: Path, profile: Path) -> str:
    """The page's elements, after its scripts."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_the_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    # As it is, under its own policy: the script runs, and nothing that a name holds.
    shown = Page(shown_by_the_browser(page, tmp_path / "user"))
    assert "4 of 4 maps" in shown.words
    assert "hacked" not in shown.words[: shown.words.index("4 of 4 maps")]
    assert [each["value"] for each in shown.of("option")].count(HOSTILE) == 1

    # A copy without the policy, for a script that acts as a user does.
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    acting = page.with_name("acting.html")
    acting.write_text(text.replace("</body>", f"<script>{ACTS}</script></body>"), encoding="utf-8")
    (body,) = Page(shown_by_the_browser(acting, tmp_path / "user")).of("body")
    told = dict(json.loads(str(body["data-told"])))
    ten, nine, one = "a/10.jpg", "a/9.jpg", "b/1.jpg"
    assert told == {
        "hidden": 0,
        "labels": ["", HOSTILE, "crow", "wren"],
        "by name": [HOSTILE, nine, ten, one],
        "by probability": [one, ten, HOSTILE, nine],
        "down": [nine, HOSTILE, ten, one],
        "by score, down": [ten, nine, HOSTILE, one],  # those without a score last, either way
        "by label": [HOSTILE, nine, ten, one],
        "wrong": [nine],
        "right": [ten, one],
        "right crows": [ten],
        "0.5 to 0.7": [HOSTILE, ten],
        "score from 0.3": [ten],
        "count": "4 of 4 maps",
        "first": HOSTILE,
        "second": nine,
        "last": one,
        "still last": one,
        "open": [True, "c%23%25%3F.png".replace("%25", "%"), f"{HOSTILE}: {HOSTILE} 62.5%"],
        "next": "9.png",
        "closed": False,
    }


PICTURES = """
addEventListener("load", () => {
  const pictures = [...document.querySelectorAll("figure img")];
  document.body.dataset.told = JSON.stringify(pictures.map(picture => picture.naturalWidth));
});
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_pictures_are_shown_under_the_policy_of_the_page(page: Path, tmp_path: Path) -> None:
    """The script that looks on is let in beside the page's own; all else of the policy is as it was."""
    let_in = base64.b64encode(hashlib.sha256(PICTURES.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{let_in}' ")
    page.write_text(text.replace("<main>", f"<script>{PICTURES}</script><main>"), encoding="utf-8")
    (body,) = Page(shown_by_the_browser(page, tmp_path / "user")).of("body")
    assert json.loads(str(body["data-told"])) == [12] * 4
