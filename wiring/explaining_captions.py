"""Where each word of a caption looked, for photographs given on the command line."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, atomic_write, check_range, claim_folder, none_read
from vit.options import DecodingOptions, Device
from vit.terminal import progress, say, tell_skipped
from wiring.caption_verbs import generation, vocabulary_of
from wiring.data import check_reading, image_files
from wiring.explaining import check_block, output_stems, refuse_images_within, remove_summaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datamodules.image_files import ImageFile
    from datamodules.vocabulary import Vocabulary
    from vit.models.captioner import Captioner
    from vit.models.generation import GenerationOptions
    from vit.saliency.render import Colormap

CAPTION_OPTIONS = {
    "model", "images", "out", "task", "decoding", "method", "start_block", "colormap", "opacity", "limit", "batch_size",
    "num_workers", "device", "strict", "overwrite",
}  # fmt: skip
INDEX, SHEET = "index.csv", "contact_sheet.png"
SHEET_STRIPS = 12
COLUMNS = [
    "image", "img_h", "img_w", "caption", "place", "word", "probability", "map", "grid_h", "grid_w", "min", "max",
    "flag",
]  # fmt: skip


def explain_captioner(
    model: str,
    images: list[str],
    decoding: DecodingOptions,
    *,
    out: str,
    method: str,
    start_block: int,
    colormap: Colormap,
    opacity: float,
    limit: int | None,
    batch_size: int,
    num_workers: int,
    device: Device,
    strict: bool,
    overwrite: bool,
) -> None:
    """Writes a caption for each photograph and draws where each of its words looked: a strip and raw maps per photo.

    Raises:
        UserError: several processes, options or a model that can't be used, images in the output folder, a folder that
            can't be written to, or images of which none can be read.
    """
    from datamodules.image_files import list_images
    from vit import processes
    from vit.checkpoints.captioner import load_captioner
    from vit.inference import choose_device
    from vit.saliency.export import PHOTO_SIDE

    processes.refuse_several("vit explain of a captioner")
    check_reading(batch_size, num_workers)
    check_range("opacity", opacity, 0, 1)
    if method not in ("default", "attribution"):
        raise UserError(
            f"--method is {method!r}; captions are explained by attribution, or by default\n"
            "(attribution minus what all words of the caption have in common)."
        )
    place = choose_device(device)
    network = load_captioner(model).to(place).eval()
    check_block(start_block, len(network.encoder.blocks))
    vocabulary, options = vocabulary_of(network, model), generation(decoding, network)
    files = list_images(images, limit=limit, elsewhere=[out])
    refuse_images_within(Path(out), files)
    folder = claim_folder(out, overwrite=overwrite)
    remove_summaries(folder)
    loader = image_files(files, network.preprocessing, photo_side=PHOTO_SIDE).loader(
        batch_size, num_workers, strict=strict
    )
    plain = method == "attribution"
    steps = _explained(network, loader, files, vocabulary, options, folder, start_block, plain, colormap, opacity)
    skipped: dict[str, str] = {}
    rows: list[list[Any]] = []
    strips: list[tuple[Any, str]] = []
    for found, strip, unread in progress(steps, "explaining", len(files), lambda step: len(step[1]) + len(step[2])):
        rows += found
        skipped |= unread
        strips += strip[: SHEET_STRIPS - len(strips)]
    tell_skipped(skipped, folder)
    if len(skipped) == len(files):
        raise none_read(f"{len(files)} images", skipped)
    _finish(folder, rows, strips)
    look = f"; first look at {folder / SHEET}" if strips else ""
    say(f"{len(files) - len(skipped)} captions with a map per word in {folder}{look}")


def _explained(
    network: Captioner,
    batches: Any,
    files: list[ImageFile],
    vocabulary: Vocabulary,
    options: GenerationOptions,
    folder: Path,
    start_block: int,
    plain: bool,
    colormap: Colormap,
    opacity: float,
) -> Iterator[tuple[list[list[Any]], list[tuple[Any, str]], dict[str, str]]]:
    """For each batch: (rows of the index, strips with the photographs' names, images that could not be read)."""
    import torch

    from datamodules.reading import printable
    from vit.saliency.captions import beyond_the_caption, explain_captions
    from vit.saliency.map_files import save_map
    from vit.saliency.render import save_overlay, word_strip

    stems, device = output_stems(files), next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(0)  # sampled words are the same in every run
    for batch in batches:
        rows: list[list[Any]] = []
        strips: list[tuple[Any, str]] = []
        if len(batch["image"]):
            found = explain_captions(
                network, batch["image"].to(device), options=options, generator=generator, start_block=start_block
            )
            maps = (found.maps if plain else beyond_the_caption(found.maps, found.mask)).cpu().numpy()
            chances = found.log_probs.exp().tolist()
            for n, index in enumerate(batch["index"].tolist()):
                # A sampled caption may contain any token anywhere: tokens that are not words get no map.
                said = [place for place, one in enumerate(found.ids[n].tolist())
                        if one not in (network.pad, network.start, network.end)]  # fmt: skip
                ids, of_words = found.ids[n, said].tolist(), maps[n, said]
                name, words = printable(files[index].relative), vocabulary.words(ids)
                about = [name, *batch["size"][n], vocabulary.decode(ids)]
                if not words:
                    rows.append([*about, *[""] * (len(COLUMNS) - len(about) - 1), "no words"])
                    continue
                photo, strip_path = batch["photo"][n].numpy(), stems[index].with_name(stems[index].name + ".png")
                strip = word_strip(photo, words, of_words, colormap=colormap, opacity=opacity)
                save_overlay(folder / strip_path, strip)
                path = stems[index].with_name(stems[index].name + ".npy")
                save_map(folder / path, of_words)
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                rows += [_row(about, number, word, chances[n][place], shown, of_words[number])
                         for number, (place, word) in enumerate(zip(said, words, strict=True))]  # fmt: skip
                strips.append((strip, name))
        yield rows, strips, dict(batch["skipped"])


def _row(about: list[Any], place: int, word: str, chance: float, path: str, saliency: Any) -> list[Any]:
    from vit.saliency.map_files import finite_range
    from vit.saliency.render import map_flag

    limits = finite_range(saliency)
    ends = ["", ""] if limits is None else [f"{value:.6g}" for value in limits]
    return [*about, place, word, f"{chance:.6f}", path, *saliency.shape, *ends, map_flag(saliency)]


def _finish(folder: Path, rows: list[list[Any]], strips: list[tuple[Any, str]]) -> None:
    """Writes index.csv, one row per word, and a sheet of the first strips, one below the other."""
    import numpy as np

    from vit.saliency.render import contact_sheet, save_overlay

    with atomic_write(folder / INDEX) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(rows)
    if not strips:
        return
    pages = [next(contact_sheet([pair], columns=1, tile=pair[0].shape[:2], per_page=1)) for pair in strips]
    width = max(page.shape[1] for page in pages)
    sides = [((0, 0), (0, width - page.shape[1]), (0, 0)) for page in pages]
    sheet = [np.pad(page, side, constant_values=255) for page, side in zip(pages, sides, strict=True)]
    save_overlay(folder / SHEET, np.vstack(sheet))
