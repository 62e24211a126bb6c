"""Generated bird scenes with captions, as a data set: the scenes hold the bird and what the caption names, no more.

Which of several things a caption speaks of can't be seen, so nothing else stands about (`clutter`). A scene has one
caption, drawn at random, of all the wordings that are true of it: with the bird's pose or without, in one of four
phrases for the place. Training sees the one; an evaluation takes any of them for right.
"""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import Dataset

from datamodules.birdscenes import FIRST, species_of
from datamodules.sampling import Draw, SampleLoader, sample_loader
from datamodules.scene_plans import ScenePlan, plan_scene, wordings
from datamodules.scenes import MIN_SIZE, render_plan
from datamodules.transforms import Interpolation, Pipeline, eval_transform, train_transform
from datamodules.vocabulary import Vocabulary
from vit.foundation import UserError

SCENES_OF_WORDS = 1024  # whose captions the vocabulary is trained on: the rarest word is in several of them


class CaptionedScenes(Dataset):
    """`length` scenes an epoch, from scene `first` of the series on.

    An item is a dict of `image` float32 (3, h, w), `ids` of its caption, `references`, those of all its wordings,
    `index`, and, but for training, `mask` bool (h, w), True on the bird. In training the caption alone is a reference.
    """

    def __init__(
        self,
        species: Sequence[str],
        length: int,
        vocabulary: Vocabulary,
        transform: Pipeline,
        *,
        size: int,
        first: int = 0,
        training: bool = False,
        seed: int = 0,
    ) -> None:
        self.species = tuple(species)
        self.length = length
        self.vocabulary = vocabulary
        self.transform = transform
        self.size = size
        self.first = first
        self.training = training
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def plan(self, index: int, epoch: int = 0) -> ScenePlan:
        """What a scene shows, and what is said of it."""
        return plan_scene(self.seed, self.first + epoch * self.length + index, species=self.species, clutter=False)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        epoch, index = draw if isinstance(draw, Draw) else Draw(0, draw)
        plan = self.plan(index, epoch)
        scene, key = render_plan(plan, self.size), (self.seed, epoch, index)
        ids = self.vocabulary.encode(plan.caption)
        if self.training:
            return {"image": self.transform(scene.image, key), "ids": ids, "references": [ids], "index": index}
        image, mask = self.transform.with_mask(scene.image, scene.mask, key)
        references = [self.vocabulary.encode(text) for text in wordings(plan)]
        return {"image": image, "ids": ids, "references": references, "index": index, "mask": mask}


class BirdSceneCaptions(pl.LightningDataModule):
    """Generated scenes with captions, for training and evaluation.

    Args:
        which: `demo` or `pretrain`, see `BirdScenes`.
        image_size, mean, std, train_scenes, val_scenes, batch_size, num_workers, color_jitter, erase, interpolation,
            seed: as of `BirdScenes`. Nothing is mirrored or cropped: captions say "left" and name what is there.
        vocabulary: a checkpoint's; None trains one on captions of train.

    Raises:
        UserError: `which` or a count makes no sense.
    """

    def __init__(
        self,
        which: str,
        *,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        vocabulary: Vocabulary | None = None,
        train_scenes: int = 4096,
        val_scenes: int = 512,
        batch_size: int = 32,
        num_workers: int = -1,
        color_jitter: float = 0.0,
        erase: float = 0.0,
        interpolation: Interpolation = "bicubic",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(train_scenes, val_scenes) < 1:
            raise UserError(f"train_scenes {train_scenes} and val_scenes {val_scenes} must be 1 or more.")
        self.species = species_of(which)
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": val_scenes}
        self.train_transform = train_transform(
            image_size, mean, std, crop_scale=1.0, hflip=0.0, color_jitter=color_jitter, erase=erase,
            interpolation=interpolation,
        )  # fmt: skip
        self.eval_transform = eval_transform(image_size, mean, std, interpolation=interpolation)
        self.vocabulary = vocabulary or Vocabulary.train(self._texts())

    def _texts(self) -> list[str]:
        plans = (plan_scene(self.seed, n, species=self.species, clutter=False) for n in range(SCENES_OF_WORDS))
        return [text for plan in plans for text in wordings(plan)]

    @property
    def longest(self) -> int:
        """Tokens of the longest caption, its start and end counted."""
        return max(len(self.vocabulary.encode(text)) for text in self._texts())

    def dataset(self, split: str, *, training: bool = False) -> CaptionedScenes:
        """The scenes of `train`, `val` or `test`, with masks and all wordings unless for `training`."""
        if split not in self.lengths:
            raise UserError(f"The data has no split {split!r}; it has: {', '.join(self.lengths)}.")
        return CaptionedScenes(
            self.species,
            self.lengths[split],
            self.vocabulary,
            self.train_transform if training else self.eval_transform,
            size=max(*self.image_size, MIN_SIZE),
            first=FIRST[split],
            training=training,
            seed=self.seed,
        )

    def names(self, split: str) -> list[str]:
        """What the scenes of a split are called, by index."""
        return [f"{split} scene {index}" for index in range(self.lengths[split])]

    def dataloader(self, split: str) -> SampleLoader:
        """Batches of a split in order; a batch has `mask` bool (B, h, w)."""
        return self._loader(split)

    def train_dataloader(self) -> SampleLoader:
        """Batches of new scenes in random order."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> SampleLoader:
        return self._loader("val")

    def test_dataloader(self) -> SampleLoader:
        return self._loader("test")

    def _loader(self, split: str, *, training: bool = False) -> SampleLoader:
        empty: dict[str, Any] = {
            "image": torch.empty(0, 3, *self.image_size),
            "ids": [],
            "references": [],
            "index": torch.empty(0, dtype=torch.int64),
        }
        if not training:
            empty["mask"] = torch.empty(0, *self.image_size, dtype=torch.bool)
        return sample_loader(
            self.dataset(split, training=training), empty, batch_size=self.batch_size, num_workers=self.num_workers,
            shuffle=training, seed=self.seed,
        )  # fmt: skip
