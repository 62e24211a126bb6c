"""Models of every make with all parameters random, a photograph, and what ours says of it."""

from dataclasses import asdict

import pytest
import torch
from PIL import Image

from datamodules.image_files import ImageFiles, list_images
from datamodules.scenes import draw_scene
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder

LABELS = ("鳥", "crow", "épervier", "bee eater")
SQUASH = Preprocessing((30, 30), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
CROP = Preprocessing((30, 30), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), "bilinear", "crop", 0.875)


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A scene as a camera stores one: a JPEG much larger than what models take, no multiple of anything."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image = Image.fromarray(draw_scene(3, 0, size=96, species=("crow", "gull")).image)
    image.resize((487, 331), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


@pytest.fixture(scope="session")
def build(randomise):
    """A tiny random Classifier; keywords as `image_encoder` takes them, and some of Classifier's."""

    def make(*, pool="class", fc_norm=False, num_classes=4, labels=LABELS, prepared=SQUASH, **options):
        options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": (6, 6), **options}
        encoder = image_encoder(image_size=prepared.image_size, **options)
        model = Classifier(
            encoder,
            num_classes,
            pool=pool,
            fc_norm=fc_norm,
            labels=labels if num_classes else (),
            preprocessing=prepared,
        )
        return randomise(model, std=0.3)

    return make


@pytest.fixture(scope="session")
def ask():
    """Our probabilities of a photograph, by label, through our own reading of files."""

    @torch.inference_mode()
    def probabilities(model, path):
        prepared = asdict(model.preprocessing)
        files = ImageFiles(
            list_images([path]), prepared.pop("image_size"), prepared.pop("mean"), prepared.pop("std"), **prepared
        )
        found = model.probabilities(model(files[0]["image"][None]))[0].tolist()
        assert 0.02 < max(found) - min(found) < 0.98  # neither all alike nor all or nothing: there is something to see
        return dict(zip(model.labels, found, strict=True))

    return probabilities
