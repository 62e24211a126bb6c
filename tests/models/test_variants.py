"""The table of sizes against timm's models of the same name."""

import pytest
import timm
import torch

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.variants import VARIANTS, variant


@pytest.mark.parametrize(
    ("name", "patch_size"), [("tiny", 16), ("small", 16), ("base", 16), ("large", 16), ("huge", 14), ("giant", 14)]
)
def test_sizes_equal_timm(name, patch_size):
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{name}_patch{patch_size}_224", num_classes=1000)
        encoder = image_encoder(image_size=(224, 224), patch_size=(patch_size, patch_size), **variant(name))
        ours = Classifier(encoder, 1000)
    count = sum(p.numel() for p in ours.parameters()) + encoder.embed_dim  # our class token includes its position
    assert count == sum(p.numel() for p in theirs.parameters())
    assert encoder.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_divide_every_width(name):
    assert variant(name)["embed_dim"] % variant(name)["num_heads"] == 0


def test_table_can_not_be_changed_by_its_reader():
    variant("tiny")["depth"] = 0
    assert variant("tiny")["depth"] == 12


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"no variant 'smal' \(did you mean 'small'\?\); allowed are .*tiny, small"):
        variant("smal")
