"""Generated bird scenes as a data set: endless, offline, with the exact mask of the bird.

The seed selects an endless series of numbered scenes, and the splits take these numbers of it:

    train    epoch * train_scenes + index: each epoch brings new scenes, which teach more than repeated ones
    val      from 2**40 on
    test     from 2**41 on
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
from torch.utils.data import Dataset

from datamodules.sampling import Draw, SampleLoader, evenly, labelled_batch, sample_loader
from datamodules.scenes import DEMO_SPECIES, MIN_SIZE, PRETRAIN_SPECIES, draw_scene
from datamodules.splits import SplitLoaders, of_split
from datamodules.transforms import EraseMode, Interpolation, Pipeline, ResizeMode, eval_transform, train_transform
from vit.foundation import UserError, atomic_write, nearest

FIRST = {"train": 0, "val": 2**40, "test": 2**41}  # number of the first scene of a split
_SPECIES = {"demo": DEMO_SPECIES, "pretrain": PRETRAIN_SPECIES}


class SceneImages(Dataset):
    """`length` scenes per epoch, starting with scene `first` of the series.

    An item is a dict of `image` float32 (3, h, w), `target`, `index` and, if `masks`, `mask` bool (h, w), True on the
    bird. Scene and augmentation are pure functions of (seed, epoch, index).

    Args:
        species: names of the species in the scenes.
        length: scenes per epoch.
        transform: from the drawn scene to the model's input.
        size: side of the square scene in pixels, before the transform.
        first: number of the first scene.
        targets: target of each species; None for 0, 1, 2 ...
        confound: share of the scenes whose background depends on the species.
        masks: whether items have a mask.
        seed: seed of the scenes and of the augmentation.
    """

    def __init__(
        self,
        species: Sequence[str],
        length: int,
        transform: Pipeline,
        *,
        size: int,
        first: int = 0,
        targets: Sequence[int] | None = None,
        confound: float = 0.0,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        self.species = tuple(species)
        self.length = length
        self.transform = transform
        self.size = size
        self.first = first
        self.targets = list(targets) if targets is not None else list(range(len(self.species)))
        self.confound = confound
        self.masks = masks
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        index, key = draw.index, draw.key(self.seed)
        number = self.first + draw.epoch * self.length + index
        scene = draw_scene(self.seed, number, size=self.size, species=self.species, confound=self.confound)
        item = {"target": self.targets[scene.label], "index": index}
        if not self.masks:
            return item | {"image": self.transform(scene.image, key)}
        image, mask = self.transform.with_mask(scene.image, scene.mask, key)
        return item | {"image": image, "mask": mask}


class BirdScenes(SplitLoaders):
    """Generated scenes, for training and evaluation; a batch for evaluation has `mask` bool (B, h, w).

    Args:
        which: `demo` or `pretrain`, two sets of species without a common one.
        image_size: (h, w) of the model; before the transform, scenes are squares with its longer side.
        mean, std: of the three channels, for values 0 to 1.
        train_scenes: scenes per epoch.
        val_scenes: number of scenes in val, and in test.
        confound: share of the training scenes whose background depends on the species; none in val and test.
        batch_size, num_workers, crop_scale, hflip, color_jitter, auto_augment, erase, erase_mode, interpolation,
            resize_mode, crop_pct: as for `ImageFolder`.
        labels: a checkpoint's labels, in its order; targets then index these, by name.
        seed: seed of the scenes, their order and the augmentations.

    Raises:
        UserError: `which`, a count or `confound` is invalid, or the checkpoint lacks a species.
    """

    def __init__(
        self,
        which: Literal["demo", "pretrain"],
        *,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        train_scenes: int = 4096,
        val_scenes: int = 512,
        confound: float = 0.0,
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
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(train_scenes, val_scenes) < 1 or not 0 <= confound <= 1:
            raise UserError(
                f"train_scenes {train_scenes} and val_scenes {val_scenes} must be 1 or more, "
                f"and confound {confound} from 0 to 1."
            )
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.confound = confound
        self.seed = seed
        self.species = species_of(which)
        self.labels = tuple(labels) if labels is not None else self.species
        if unknown := sorted(set(self.species) - set(self.labels)):
            raise UserError(
                f"The checkpoint has no label for {len(unknown)} of the {len(self.species)} species of these "
                f"scenes, such as {unknown[0]!r}.\nGive scenes or photographs of its own classes."
            )
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": val_scenes}
        self.train_transform = train_transform(
            image_size, mean, std, crop_scale=crop_scale, hflip=hflip, color_jitter=color_jitter,
            auto_augment=auto_augment, erase=erase, erase_mode=erase_mode, interpolation=interpolation,
        )  # fmt: skip
        self.eval_transform = eval_transform(
            image_size, mean, std, crop_pct=crop_pct, resize_mode=resize_mode, interpolation=interpolation
        )

    def limit(self, count: int) -> None:
        """Limits each split to at most this many scenes."""
        self.lengths = {split: len(evenly(length, count)) for split, length in self.lengths.items()}

    def dataset(self, split: str, *, augment: bool = False) -> Dataset:
        """The scenes of `train`, `val` or `test`, with masks and the transform of evaluation unless
        `augment`."""
        return SceneImages(
            self.species,
            self.length(split),
            self.train_transform if augment else self.eval_transform,
            size=max(*self.image_size, MIN_SIZE),
            first=FIRST[split],
            targets=[self.labels.index(species) for species in self.species],
            confound=self.confound if split == "train" else 0.0,
            masks=not augment,
            seed=self.seed,
        )

    def empty_batch(self) -> dict[str, Any]:
        """A batch without scenes."""
        return labelled_batch(self.image_size)

    def length(self, split: str) -> int:
        """How many scenes a split has per epoch."""
        return of_split(self.lengths, split)

    def names(self, split: str) -> list[str]:
        """Names of the scenes of a split, by index."""
        return [f"{split} scene {index}" for index in range(self.length(split))]

    def _loader(self, split: str, *, augment: bool = False) -> SampleLoader:
        return sample_loader(
            self.dataset(split, augment=augment), self.empty_batch(), batch_size=self.batch_size,
            num_workers=self.num_workers, shuffle=augment, seed=self.seed,
        )  # fmt: skip


def species_of(which: str) -> tuple[str, ...]:
    """The species of a set of scenes.

    Raises:
        UserError: when there is no such set.
    """
    if which not in _SPECIES:
        hint = nearest(which, _SPECIES)
        raise UserError(f"There are no bird scenes {which!r}; allowed are demo and pretrain{hint}.")
    return _SPECIES[which]


def write_scenes(folder: Path, count: int, *, seed: int, size: int = 224) -> None:
    """Draws scenes of the demo species as PNG files, named after their number and species, to look at."""
    for index in range(count):
        scene = draw_scene(seed, index, size=size, species=DEMO_SPECIES)
        _, encoded = cv2.imencode(".png", scene.image[:, :, ::-1])
        with atomic_write(folder / f"{index:03}_{scene.species}.png") as temporary:
            temporary.write_bytes(encoded.tobytes())
