"""Generated bird scenes with captions, as a data set: the scenes show the bird and what the caption names, no more.

An image does not show which of several things its caption is about, so scenes have no other things (`clutter`). A
scene has one caption, drawn at random from all wordings that are true of it: with or without the bird's pose, and with
one of four phrases for the place. Training sees that one; an evaluation counts any of them as right.
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch.utils.data import Dataset

from datamodules.birdscenes import FIRST, BirdScenes
from datamodules.sampling import Draw, image_batch
from datamodules.scene_plans import ScenePlan, plan_scene, wordings
from datamodules.scenes import MIN_SIZE, render_plan
from datamodules.transforms import Pipeline
from datamodules.vocabulary import Vocabulary

SCENES_OF_WORDS = 1024  # scenes for training the vocabulary: the rarest word occurs in several of them


class CaptionedScenes(Dataset):
    """`length` scenes per epoch, starting with scene `first` of the series.

    An item is a dict of `image` float32 (3, h, w), `ids` of its caption, `references` (the ids of all its wordings),
    `index`, and, except in training, `mask` bool (h, w), True on the bird. In training the caption is the only
    reference.
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
        """The layout of a scene, and its caption."""
        return plan_scene(self.seed, self.first + epoch * self.length + index, species=self.species, clutter=False)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        index, key = draw.index, draw.key(self.seed)
        plan = self.plan(index, draw.epoch)
        scene = render_plan(plan, self.size)
        ids = self.vocabulary.encode(plan.caption)
        if self.training:
            return {"image": self.transform(scene.image, key), "ids": ids, "references": [ids], "index": index}
        image, mask = self.transform.with_mask(scene.image, scene.mask, key)
        references = [self.vocabulary.encode(text) for text in wordings(plan)]
        return {"image": image, "ids": ids, "references": references, "index": index, "mask": mask}


class BirdSceneCaptions(BirdScenes):
    """Generated scenes with captions, for training and evaluation.

    Args:
        which: `demo` or `pretrain`, see `BirdScenes`.
        vocabulary: a checkpoint's; None trains one on captions of train.
        options: the rest, as `BirdScenes` takes them. Nothing is mirrored or cropped, because captions say "left" and
            describe whole scenes.

    Raises:
        UserError: `which`, a count or the vocabulary is invalid.
    """

    def __init__(
        self, which: Literal["demo", "pretrain"], *, vocabulary: Vocabulary | None = None, **options: Any
    ) -> None:
        super().__init__(which, crop_scale=1.0, hflip=0.0, **options)
        self.vocabulary = vocabulary or Vocabulary.train(self._texts())

    def _texts(self) -> list[str]:
        plans = (plan_scene(self.seed, n, species=self.species, clutter=False) for n in range(SCENES_OF_WORDS))
        return [text for plan in plans for text in wordings(plan)]

    @property
    def longest(self) -> int:
        """Tokens in the longest caption, including its start and end."""
        return max(len(self.vocabulary.encode(text)) for text in self._texts())

    def dataset(self, split: str, *, augment: bool = False) -> CaptionedScenes:
        """The scenes of `train`, `val` or `test`, with masks and all wordings unless `augment`."""
        return CaptionedScenes(
            self.species,
            self.length(split),
            self.vocabulary,
            self.train_transform if augment else self.eval_transform,
            size=max(*self.image_size, MIN_SIZE),
            first=FIRST[split],
            training=augment,
            seed=self.seed,
        )

    def empty_batch(self) -> dict[str, Any]:
        """A batch without scenes."""
        return {**image_batch(self.image_size), "ids": [], "references": []}
