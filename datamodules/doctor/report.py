"""The problems as problems.csv and as report.html: one page with pictures that needs no network."""

import base64
import csv
from collections.abc import Iterable
from html import escape
from pathlib import Path

import cv2
import numpy as np

from datamodules.collection import SPLITS
from datamodules.doctor.diagnosis import ASPECTS, RESOLUTIONS, Diagnosis
from datamodules.doctor.problems import KINDS, Problem
from datamodules.reading import UnreadableImage, read_photo
from vit.foundation import atomic_write

COLUMNS = ("problem", "severity", "path", "split", "label", "detail", "other")
_SHOWN = 24  # problems of each kind on the page; all are in problems.csv
_CLASSES = 300  # rows of the table of classes
_SIDE = 128  # pixels of a picture's longer side

# Nothing may be fetched and no script may run, whatever a file name contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: left }
td { vertical-align: top }
tr:nth-child(even) { background: #f5f5f5 } td.number { text-align: right; font-variant-numeric: tabular-nums }
h2 { margin-top: 2.5rem } .error { color: #b00020 } .warning { color: #8a5a00 } .note { color: #555 }
.shown { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 17rem; font-size: 13px }
figure img { margin-right: .3rem } figcaption { overflow-wrap: anywhere }
.bar { background: #5b7fa6; height: .9rem; display: inline-block }
"""


def write_problems(diagnosis: Diagnosis, path: Path) -> None:
    """Writes all problems to a CSV, one per row, atomically."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for problem in diagnosis.problems:
            split, label = _place(diagnosis, problem)
            other = diagnosis.listing.name(problem.other) if problem.other >= 0 else ""
            name = _name(diagnosis, problem)
            rows.writerow((problem.kind, KINDS[problem.kind].severity, name, split, label, problem.detail, other))


def write_report(diagnosis: Diagnosis, path: Path, lines: Iterable[str]) -> None:
    """Writes the page atomically, with `lines` at its top."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        base = _text(str(diagnosis.listing.base))
        file.write(
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{base}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head><body>'
            f"<h1>Data check</h1><p>{base}</p>"
        )
        file.writelines(f"<p>{_text(line)}</p>" for line in lines)
        file.write(_overview(diagnosis))
        for kind in diagnosis.by_kind:
            file.write(_section(diagnosis, kind))
        file.write(_classes(diagnosis))
        file.write(_bars("Shorter side", [f"from {edge} px" for edge in RESOLUTIONS], diagnosis.resolutions))
        file.write(_bars("Width over height", [f"from {edge:g}" for edge in ASPECTS], diagnosis.aspects))
        file.write(_kinds(diagnosis))
        file.write("</body></html>\n")


def _text(text: str) -> str:
    """Text, escaped for the page."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def _name(diagnosis: Diagnosis, problem: Problem) -> str:
    return diagnosis.listing.name(problem.image) if problem.image >= 0 else problem.path


def _place(diagnosis: Diagnosis, problem: Problem) -> tuple[str, str]:
    """(split, label) of a problem's image."""
    if problem.image < 0:
        return "", ""
    return diagnosis.listing.split(problem.image), diagnosis.listing.label(problem.image)


def _overview(diagnosis: Diagnosis) -> str:
    if not diagnosis.by_kind:
        return "<p>No problems found.</p>"
    rows = (
        f'<tr><td class="{KINDS[kind].severity}">{KINDS[kind].severity}</td><td><a href="#{kind.replace(" ", "-")}">'
        f'{KINDS[kind].title}</a></td><td class="number">{count:,}</td><td>{KINDS[kind].advice}</td></tr>'
        for kind, count in diagnosis.by_kind.items()
    )
    return f"<table><tr><th></th><th>problem</th><th>count</th><th>what to do</th></tr>{''.join(rows)}</table>"


def _section(diagnosis: Diagnosis, kind: str) -> str:
    """The first problems of a kind, with pictures of the images."""
    problems = [problem for problem in diagnosis.problems if problem.kind == kind]
    title = (
        f'<h2 id="{kind.replace(" ", "-")}" class="{KINDS[kind].severity}">{KINDS[kind].title} ({len(problems):,})</h2>'
    )
    shown = "".join(_figure(diagnosis, problem) for problem in problems[:_SHOWN])
    more = f"<p>{len(problems) - _SHOWN:,} more are in problems.csv.</p>" if len(problems) > _SHOWN else ""
    return f'{title}<p>{KINDS[kind].advice}</p><div class="shown">{shown}</div>{more}'


def _figure(diagnosis: Diagnosis, problem: Problem) -> str:
    pictures = "".join(
        _picture(diagnosis.listing.records[image].path)
        for image in (problem.image, problem.other)
        if image >= 0 and image not in diagnosis.scan.reasons
    )
    name, detail = _text(_name(diagnosis, problem)), _text(problem.detail)
    return f"<figure>{pictures}<figcaption><b>{name}</b><br>{detail}</figcaption></figure>"


def _picture(path: str) -> str:
    try:
        image = read_photo(path, min_size=(_SIDE, _SIDE)).image
    except UnreadableImage:  # although it could be read a moment ago
        return ""
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * min(scale, 1))) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    data = base64.b64encode(encoded.tobytes()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="">'


def _classes(diagnosis: Diagnosis) -> str:
    splits = list(diagnosis.split_counts)
    counts = diagnosis.counts[[SPLITS.index(split) for split in splits]]
    order = np.argsort(counts.sum(axis=0), kind="stable")
    head = "".join(f"<th>{split}</th>" for split in splits)
    rows = "".join(
        f"<tr><td>{_text(diagnosis.listing.labels[label])}</td>"
        + "".join(f'<td class="number">{count:,}</td>' for count in counts[:, label])
        + "</tr>"
        for label in order[:_CLASSES]
    )
    more = f"<p>The {_CLASSES} smallest of {len(order):,}.</p>" if len(order) > _CLASSES else ""
    return f"<h2>Readable images of each class</h2>{more}<table><tr><th>class</th>{head}</tr>{rows}</table>"


def _bars(title: str, names: list[str], counts: list[int]) -> str:
    most = max(max(counts), 1)
    rows = "".join(
        f'<tr><td>{name}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{20 * count / most:.2f}rem"></span></td></tr>'
        for name, count in zip(names, counts, strict=True)
    )
    return f"<h2>{title}</h2><table>{rows}</table>"


def _kinds(diagnosis: Diagnosis) -> str:
    counts = np.bincount(diagnosis.scan.kinds[diagnosis.scan.readable], minlength=len(diagnosis.scan.kind_names))
    return _bars("As stored", [_text(name) for name in diagnosis.scan.kind_names] or ["none"], counts.tolist() or [0])
