"""One-sentence descriptions of scenes that are true of what is drawn."""

from __future__ import annotations

import numpy as np

PHRASES: dict[str, tuple[str, ...]] = {
    "water": ("over water", "over rippling water", "over a lake", "by the water"),
    "forest": ("in a forest", "in the woods", "in front of trees", "among trees"),
    "field": ("in a field", "over a field", "in a meadow", "over open ground"),
    "sky": ("in front of the sky", "in the sky", "against the sky", "under a wide sky"),
}


def with_article(words: str) -> str:
    """ "a robin", "an owl"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def bird_words(word: str, species: str, pose: str, background: str, rng: np.random.Generator) -> str:
    """ "a flying blue kingfisher": the pose is named half of the time, but swimming only on water."""
    return bird_wordings(word, species, pose, background)[-1 if rng.random() < 0.5 else 0]


def bird_wordings(word: str, species: str, pose: str, background: str) -> list[str]:
    """All descriptions of a bird: without its pose, and with it if it may be named."""
    plain, posed = with_article(f"{word} {species}"), with_article(f"{pose} {word} {species}")
    return [plain] if pose == "swimming" and background != "water" else [plain, posed]


def caption(bird: str, relation: str, other: str, background: str, rng: np.random.Generator) -> str:
    """ "{bird} {relation} {other}, {place}"; without a relation, "{bird} {place}"."""
    place = PHRASES[background][int(rng.integers(len(PHRASES[background])))]
    return sentence(bird, relation, other, place)


def sentence(bird: str, relation: str, other: str, place: str) -> str:
    """A caption from its parts."""
    return f"{bird} {relation} {other}, {place}" if relation else f"{bird} {place}"
