"""Which words each word attends to, for texts given on the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vit.foundation import UserError, atomic_write, claim_folder, nearest
from vit.terminal import say

if TYPE_CHECKING:
    from vit.models.text import TextEncoder, TokenEmbed
    from vit.saliency.render import Picture
    from vit.saliency.words import Text

TEXT_OPTIONS = {"model", "images", "out", "task", "word", "method", "start_block", "device", "overwrite"}
CSV, SHEET = "attention.csv", "contact_sheet.png"
LARGEST = 560  # maximum side of a picture on the contact sheet, in pixels


def explain_texts(
    model: str,
    texts: list[str],
    *,
    out: str,
    word: str | None,
    method: str,
    start_block: int,
    device: str,
    overwrite: bool,
) -> None:
    """Draws which words each word of each text attends to, one picture per word, and writes all numbers to a CSV.

    Args:
        word: the word to draw; None for all.

    Raises:
        UserError: several processes, a method or a start block that doesn't fit, a model that can't be used, a word
            that is not in the text, or a folder that can't be written to.
    """
    from vit import processes
    from vit.checkpoints.bert import load_text_encoder, load_tokenizer
    from vit.inference import choose_device
    from vit.saliency.render import contact_sheet, save_overlay
    from vit.saliency.words import read_text, word_attention

    processes.refuse_several("vit explain --task text")
    method = "last_attention" if method == "default" else method
    if start_block and method != "rollout":
        raise UserError(f"--start_block has no effect with --method {method}; it applies to rollout.")
    place = choose_device(device)
    network, _ = load_text_encoder(model)
    tokenizer = load_tokenizer(model, network)
    network.to(place)
    read = [read_text(tokenizer, text) for text in texts]
    _refuse_longer(max(text.ids.shape[1] for text in read), network)
    asked = [_asked(text, word) for text in read]
    weights = []
    for text in read:
        there = text._replace(ids=text.ids.to(place))
        weights.append(word_attention(network, there, method=method, start_block=start_block).cpu().numpy())
    folder = claim_folder(out, overwrite=overwrite)
    _write_csv(folder / CSV, read, weights)
    sheet: list[tuple[Picture, str]] = []
    for number, (text, matrix, places) in enumerate(zip(read, weights, asked, strict=True)):
        for asking in places:
            picture = _draw(text, asking, matrix[asking], method)
            save_overlay(folder / f"{number:03}_{asking:03}{_plain(text.words[asking])}.png", picture)
            sheet.append((picture, f"{text.words[asking]} ({number})" if len(read) > 1 else text.words[asking]))
    height, width = (min(LARGEST, max(picture.shape[side] for picture, _ in sheet)) for side in (0, 1))
    for page, picture in enumerate(contact_sheet(sheet, tile=(height, width))):
        save_overlay(folder / (f"contact_sheet_{page + 1}.png" if page else SHEET), picture)
    say(f"{len(sheet)} words in {folder}; first look at {folder / SHEET}   all numbers: {folder / CSV}")


def _refuse_longer(longest: int, network: TextEncoder) -> None:
    """Raises UserError for a text with more tokens than the model takes."""
    most = cast("TokenEmbed", network.encoder.embed).max_tokens
    if longest > most:
        raise UserError(
            f"A text has {longest} tokens; this model takes at most {most}.\n"
            "Give a shorter one, or its parts one by one."
        )


def _draw(text: Text, asking: int, row: Any, method: str) -> Picture:
    from vit.saliency.word_pictures import draw_word

    elsewhere = max(0.0, 1 - float(row.sum()))
    return draw_word(text.words, asking, row, f"{method}; {elsewhere:.0%} goes to special tokens and is left out")


def _asked(text: Text, word: str | None) -> list[int]:
    """The positions of the words to draw."""
    if word is None:
        return list(range(len(text.words)))
    places = [place for place, found in enumerate(text.words) if found.lower() == word.lower()]
    if not places:
        raise UserError(
            f"--word is {word!r}, which is not a word of the text{nearest(word, text.words)}.\n"
            f"Its words are: {', '.join(text.words[:40])}."
        )
    return places


def _plain(word: str) -> str:
    """The part of a word that is safe in a file name, after an underscore; empty if there is none."""
    letters = "".join(letter for letter in word[:20] if letter.isalnum() and letter.isascii())
    return f"_{letters}" if letters else ""


def _write_csv(path: Path, texts: list[Text], weights: list[Any]) -> None:
    """Writes one row per pair of words of a text."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "place", "word", "attended_place", "attended_word", "weight"])
        for number, (text, matrix) in enumerate(zip(texts, weights, strict=True)):
            for place, word in enumerate(text.words):
                for other, attended in enumerate(text.words):
                    rows.writerow([number, place, word, other, attended, f"{matrix[place, other]:.6g}"])
