"""How fast the images can be read for training."""

from collections.abc import Sequence
from time import perf_counter

import cv2
import numpy as np

from datamodules.doctor.listing import Listing
from datamodules.doctor.scan import Scan
from datamodules.image_folder import LabelledImages
from datamodules.sampling import Draw
from datamodules.transforms import train_transform

_SAMPLE = 32  # images


def reading_rate(
    listing: Listing,
    scan: Scan,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> float:
    """Images/s that one process reads and augments for training, measured on a sample of train; 0 if it has none."""
    images = np.flatnonzero(scan.readable & (listing.splits == 0))
    if not len(images):
        return 0.0
    chosen = images[np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int)].tolist()
    dataset = LabelledImages(
        [listing.records[image].path for image in chosen],
        listing.targets[chosen].tolist(),
        train_transform(image_size, mean, std),
    )
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in a reading process
    dataset[Draw(0, 0)]  # the first one builds tables
    began = perf_counter()
    for index in range(len(chosen)):
        dataset[Draw(1, index)]
    seconds = perf_counter() - began
    cv2.setNumThreads(threads)
    return len(chosen) / seconds
