"""The class of an image that is explained: `--target` as class indices for each image."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vit.foundation import UserError, nearest

TOPK = "topk:"


@dataclass(frozen=True)
class Target:
    """A choice of classes, see `parse_target`.

    Args:
        classes: classes for all images; empty if the logits or the table decide.
        topk: number of likeliest classes, likeliest first; 0 for none.
        by_image: name of an image -> its class.
    """

    classes: tuple[int, ...] = ()
    topk: int = 0
    by_image: Mapping[str, int] = field(default_factory=dict)

    @property
    def needs_logits(self) -> bool:
        """Whether the classes depend on the model's logits."""
        return self.topk > 0

    @property
    def maps_an_image(self) -> int:
        """How many classes, and so how many maps, each image gets."""
        return self.topk or 1

    def of(self, names: Sequence[str], logits: Tensor | None = None) -> list[list[int]]:
        """The classes of each image, `maps_an_image` of them.

        Args:
            names: names of the images, as in the table of the CSV.
            logits: (B, num_classes), if they decide.

        Raises:
            UserError: for an image that is not in the table.
        """
        if self.classes:
            return [list(self.classes) for _ in names]
        if self.topk:
            assert logits is not None
            found: list[list[int]] = logits.topk(self.topk, dim=1).indices.tolist()
            return found
        missing = [name for name in names if name not in self.by_image]
        if missing:
            raise UserError(
                f"--target has no class for {missing[0]!r} ({len(missing)} of {len(names)} images have none)"
                f"{nearest(missing[0], self.by_image)}.\nIts column `image` must have all images with the same paths."
            )
        return [[self.by_image[name]] for name in names]


def parse_target(text: str, labels: Sequence[str], num_classes: int) -> Target:
    """Reads a target: "predicted"; a label; the index of a class; "topk:K"; or "FILE.csv:COLUMN".

    What is a label is taken for the label, whatever else it could be. The CSV has a column `image`, and in COLUMN a
    label or an index.

    Args:
        labels: of the model's classes, in order; may be empty.
        num_classes: of the model's head, above 0.

    Raises:
        UserError: for a target that the model does not have, or a table that can't be read.
    """
    if text in labels:
        return Target(classes=(labels.index(text),))
    if text == "predicted":
        return Target(topk=1)
    if text.startswith(TOPK):
        return Target(topk=_count(text, num_classes))
    path, colon, column = text.rpartition(":")
    if colon and path.lower().endswith(".csv"):
        return Target(by_image=_read_column(Path(path), column, labels, num_classes))
    index = class_index(text, labels, num_classes)
    if index is None:
        raise UserError(
            f"--target {text!r} is not a label of the model{nearest(text, labels)}.\n"
            f"Allowed are predicted, its {num_classes} labels, an index below that, topk:K, or FILE.csv:COLUMN."
        )
    return Target(classes=(index,))


def class_index(text: str, labels: Sequence[str], num_classes: int) -> int | None:
    """The class that a label or an index names; None if it is neither."""
    if text in labels:
        return labels.index(text)
    return int(text) if text.isascii() and text.isdecimal() and int(text) < num_classes else None


def _count(text: str, num_classes: int) -> int:
    count = text.removeprefix(TOPK)
    if not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= num_classes:
        raise UserError(f"--target is {text!r}; allowed are topk:1 to topk:{num_classes}, the model's classes.")
    return int(count)


def _read_column(path: Path, column: str, labels: Sequence[str], num_classes: int) -> dict[str, int]:
    """The table of a CSV: name of an image -> its class."""
    if not path.is_file():
        raise UserError(f"--target names the table {path}, but that file does not exist.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or [])
            for wanted in ("image", column):
                if wanted not in columns:
                    raise UserError(
                        f"{path} has no column {wanted!r}{nearest(wanted, columns)}.\n"
                        f"It has {', '.join(columns) or 'none'}; --target FILE.csv:COLUMN needs `image` and COLUMN."
                    )
            found = {}
            for number, row in enumerate(rows, start=2):
                index = class_index((row[column] or "").strip(), labels, num_classes)
                if index is None:
                    raise UserError(
                        f"{path}, row {number}: {row[column]!r} is not a label of the model"
                        f"{nearest(row[column] or '', labels)}.\nAllowed are its {num_classes} labels, or an index."
                    )
                found[row["image"]] = index
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV in UTF-8: {error}.") from None
    return found
