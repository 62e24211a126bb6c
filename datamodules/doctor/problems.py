"""The kinds of problems that a data set may have: how bad each is, and what to do about it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """A kind of problem.

    Args:
        title: its name in reports.
        severity: an error stops training, loses images or makes the measured accuracy misleading; a warning may do
            harm; a note is only information.
        advice: what to do.
        dropped: whether images with this problem are left out of the list of good ones.
    """

    title: str
    severity: Severity
    advice: str
    dropped: bool = False


KINDS: dict[str, Kind] = {
    "unreadable": Kind("unreadable images", "error", "Fetch them again, or remove them.", True),
    "missing": Kind("images that are not there", "error", "Correct the paths in the manifest.", True),
    "label": Kind("rows that can't be used", "error", "Correct these rows of the manifest.", True),
    "conflict": Kind("same image, different labels", "error", "Decide which label is right; remove the others.", True),
    "leak": Kind("same image in two splits", "error", "Remove it from train: the model would remember it.", True),
    "group": Kind("groups in more than one split", "error", "Give all images of a group the same split.", True),
    "classes": Kind("classes that break training", "error", "Add images to train: two or more classes, none empty."),
    "validation": Kind("no images for validation", "error", "Add images or groups, or give some the split val."),
    "near leak": Kind(
        "near duplicate in another split", "warning", "Look: frames of one scene belong in one split.", True
    ),
    "near conflict": Kind("near duplicate with another label", "warning", "Look at both: one may be mislabelled."),
    "folder label": Kind("label is not the folder's name", "warning", "Look: the folder is named after another label."),
    "blank": Kind("blank images", "warning", "Remove them: there is nothing to learn.", True),
    "tiny": Kind("tiny images", "warning", "Find larger ones, or train at a small image size."),
    "giant": Kind("giant images", "warning", "Train on smaller copies: reading takes most of the time."),
    "aspect": Kind("very long or tall images", "warning", "Crop them: squashed to a square, they are unrecognisable."),
    "duplicate": Kind("same image twice in a split", "warning", "Keep one: copies only give it more weight.", True),
    "near duplicate": Kind("near duplicates in a split", "note", "A few do no harm; many make a class look larger."),
    "unmeasured": Kind("classes missing from val or test", "warning", "Give each split images of every class."),
    "few": Kind("classes with few training images", "warning", "Add images, or merge classes."),
    "imbalance": Kind("unequal classes", "warning", "Watch balanced accuracy; add images of small classes."),
    "collision": Kind("class names that differ in case only", "warning", "Merge them if they are one class."),
    "ignored": Kind("folders and files passed over", "note", "Nothing, if they don't belong to the data."),
    "mode": Kind("images that are converted", "note", "Nothing: they are read as 8-bit RGB, composited on white."),
    "frames": Kind("images of several frames", "note", "Nothing, if the first frame is the right one."),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Args:
        kind: a key of KINDS.
        detail: one line.
        image: index of the image in the listing, or -1.
        other: index of the image that it duplicates, or -1.
        path: printable path or name, if the problem is not about an image of the listing.
    """

    kind: str
    detail: str
    image: int = -1
    other: int = -1
    path: str = ""
