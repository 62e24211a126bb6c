"""Photographs to measure with."""

from pathlib import Path

import cv2

from datamodules.scenes import DEMO_SPECIES, draw_scene


def photographs(folder: Path, otherwise: Path, count: int, *, size: int, seed: int) -> tuple[Path, str]:
    """(the folder of photographs, what they are): `folder` where there is one, else scenes drawn into `otherwise`."""
    if folder.is_dir():
        return folder, str(folder)
    write_scenes(otherwise, count, size=size, seed=seed)
    return otherwise, f"{count} generated scenes of {size} px (there is no {folder})"


def write_scenes(folder: Path, count: int, *, size: int, seed: int) -> None:
    """Generated scenes as JPEG files, as photographs are, in a folder a species."""
    for number in range(count):
        scene = draw_scene(seed, number, size=size, species=DEMO_SPECIES)
        place = folder / scene.species
        place.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".jpg", scene.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        (place / f"{number:05}.jpg").write_bytes(encoded.tobytes())
