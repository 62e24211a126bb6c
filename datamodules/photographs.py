"""What the data modules of photographs in folders share: transforms, batches and names."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.collection import Source
from datamodules.photo_cache import PhotoCache
from datamodules.reading import Photo, UnreadableImage, printable, read_photo
from datamodules.sampling import Draw, SampleLoader, Skipped, image_batch, sample_loader
from datamodules.splits import SplitLoaders
from datamodules.transforms import EraseMode, Interpolation, Pipeline, ResizeMode, eval_transform, train_transform


class PhotoDataset(Dataset):
    """Photos of one split.

    An item is a dict of `image` float32 (3, h, w), `index` and `note`, or Skipped for a file that can't be read. The
    transform's random numbers are a pure function of (seed, epoch, index). With a `cache`, photos are decoded once.

    Args:
        paths: the photos.
        transform: from the photo to the model's input.
        seed: seed of what is random in the transform.
    """

    cache: PhotoCache | None = None
    sources: Sequence[Source | None] = ()  # for photos that are not files of their own

    def __init__(self, paths: Sequence[str], transform: Pipeline, seed: int = 0) -> None:
        self.paths = [Path(path) for path in paths]
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        try:
            photo = self._settled(draw.index)
        except UnreadableImage as error:
            return Skipped(error.path, error.reason)
        image = self.transform.vary(photo.image, draw.key(self.seed))
        return {"image": image, "index": draw.index, "note": photo.note}

    def _settled(self, index: int) -> Photo:
        """The photo after the fixed part of the transform."""
        path, source = self.paths[index], self.sources[index] if self.sources else None

        def make() -> Photo:
            size = self.transform.min_size
            photo = source.photo(size) if source else read_photo(path, min_size=size)
            return photo._replace(image=self.transform.settle(photo.image))

        if self.cache is None:
            return make()
        try:
            state = source.state() if source else file_state(path)
        except OSError:
            return make()  # raises an error that says what is wrong
        return self.cache.photo(state, self.transform.recipe, make)


def file_state(path: str | os.PathLike[str]) -> bytes:
    """A key that distinguishes a file in its present state from all others."""
    status = Path(path).stat()
    return b"\0".join([os.fsencode(path), b"%d %d" % (status.st_size, status.st_mtime_ns)])


def relative_paths(paths: Iterable[str], base: Path) -> list[str]:
    """Absolute paths made relative to `base`, as by `os.path.relpath`; since that is slow, it is only called for paths
    outside `base`."""
    start = os.path.join(os.path.normpath(base), "")  # noqa: PTH118
    normal = map(os.path.normpath, paths)
    return [path[len(start) :] if path.startswith(start) else os.path.relpath(path, base) for path in normal]


class Photographs(SplitLoaders):
    """Photographs below a root, in splits; subclasses define `paths` and `dataset`.

    Names of photographs are relative to `base`.

    Args:
        root: a folder or manifest.
        image_size: (h, w) of the model.
        mean, std: of the three channels, for values 0 to 1.
        batch_size: images per batch; the last batch of an epoch may have fewer.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        crop_scale, hflip, color_jitter, auto_augment, erase, erase_mode: see `train_transform`.
        interpolation, resize_mode, crop_pct: see `eval_transform`.
        strict: stop at the first unreadable image, instead of listing it in its batch.
        cache: folder that keeps decoded photos, see `PhotoCache`; `cache_gb` is its maximum size in 10^9 bytes.
        seed: seed of the split, the order and the augmentations.

    Raises:
        UserError: for an unknown interpolation or augmentation policy, or a cache that can't be created.
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 32,
        num_workers: int = -1,
        crop_scale: float = 0.35,
        hflip: float = 0.5,
        color_jitter: float = 0.2,
        auto_augment: str | None = None,
        erase: float = 0.0,
        erase_mode: EraseMode = "mean",
        interpolation: Interpolation = "bicubic",
        resize_mode: ResizeMode = "squash",
        crop_pct: float = 1.0,
        strict: bool = False,
        cache: str | None = None,
        cache_gb: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root).absolute()
        self.base = self.root
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.strict = strict
        self.cache = PhotoCache(cache, cache_gb * 1e9) if cache else None
        self.seed = seed
        self.train_transform = train_transform(
            image_size, mean, std, crop_scale=crop_scale, hflip=hflip, color_jitter=color_jitter,
            auto_augment=auto_augment, erase=erase, erase_mode=erase_mode, interpolation=interpolation,
        )  # fmt: skip
        self.eval_transform = eval_transform(
            image_size, mean, std, crop_pct=crop_pct, resize_mode=resize_mode, interpolation=interpolation
        )

    def dataset(self, split: str, *, augment: bool = False) -> PhotoDataset:
        """The photos of a split, with the transform of evaluation unless `augment`."""
        raise NotImplementedError

    def empty_batch(self) -> dict[str, torch.Tensor]:
        """A batch without images."""
        return image_batch(self.image_size)

    def paths(self, split: str) -> list[str]:
        """The photos of a split, absolute, by index."""
        raise NotImplementedError

    def length(self, split: str) -> int:
        """How many photos a split has."""
        return len(self.paths(split))

    def names(self, split: str) -> list[str]:
        """The photos of a split, relative to `base` and printable, by index."""
        return [printable(path) for path in relative_paths(self.paths(split), self.base)]

    def _loader(self, split: str, *, augment: bool = False) -> SampleLoader:
        dataset = self.dataset(split, augment=augment)
        dataset.cache = self.cache
        return sample_loader(
            dataset, self.empty_batch(), batch_size=self.batch_size,
            num_workers=self.num_workers, shuffle=augment, classes=self.sampled_classes() if augment else None,
            seed=self.seed, strict=self.strict,
        )  # fmt: skip
