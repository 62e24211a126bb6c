"""A model for another library: its files, and a model card with the code that loads them."""

from pathlib import Path

from vit.checkpoints.card import model_card
from vit.checkpoints.targets import TARGETS
from vit.checkpoints.targets.target import Target, sha256
from vit.foundation import UserError, atomic_write, nearest
from vit.models.classifier import Classifier

WEIGHTS = (".safetensors", ".pth")


def export(model: Classifier, target: str, folder: Path) -> list[str]:
    """Writes a model in the format of another library, without its neighbours, with a README.md.

    Args:
        model: the model.
        target: the name of one of TARGETS.
        folder: an existing, empty folder.

    Returns:
        The names of the files.

    Raises:
        UserError: as `check_target`.
    """
    found = check_target(model, target)
    found.write(model, folder)
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS}
    card = model_card(model, digests, {target: found.loading(model)}, exported=True)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def check_target(model: Classifier, target: str) -> Target:
    """The target of this name.

    Raises:
        UserError: when there is none, or the library can't represent all of the model; says what.
    """
    found = next((each for each in TARGETS if each.name == target), None)
    if found is None:
        names = [each.name for each in TARGETS]
        raise UserError(f"There is no target {target!r}{nearest(target, names)}; allowed are {', '.join(names)}.")
    if obstacles := found.obstacles(model):
        fitting = [each.name for each in TARGETS if not each.obstacles(model)]
        raise UserError(
            f"{target} can't represent all of this model: {'; '.join(obstacles)}.\n"
            + (f"It can be exported to {' or '.join(fitting)}." if fitting else "Only its model folder holds it all.")
        )
    return found
