"""A checkpoint of training is a model: with its labels, preprocessing and architecture, and nothing assumed."""

import lightning as L
import pytest
import torch

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.masked import MaskedAutoencoder
from vit.training.classification import ClassificationTask


@pytest.fixture
def checkpoint(tmp_path):
    """A model's checkpoint, as Lightning writes it."""

    def save(model):
        task = ClassificationTask(model, lr=1e-3, weight_decay=0.1)
        trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        trainer.strategy.connect(task)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return save


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("class", {}),
        ("mean", {"fc_norm": True, "final_norm": False, "class_token": False}),
        ("class+dist", {"dist_token": True, "act": "quick_gelu"}),
        ("class+mean", {"dist_token": True, "num_registers": 3, "norm_eps": 1e-3}),
        ("attention", {"num_registers": 2}),
    ],
)
def test_a_checkpoint_is_the_model(build, checkpoint, pool, options):
    model = build(pool=pool, **options)
    again, report = load_with_report(checkpoint(model))
    images = torch.randn(2, 3, *model.preprocessing.image_size)
    assert torch.equal(again.eval()(images), model(images))
    assert (again.pool, again.labels, again.preprocessing) == (pool, model.labels, model.preprocessing)
    assert (report.layout, report.assumed, report.dropped) == ("vit's checkpoints", [], [])


@pytest.mark.filterwarnings("ignore")
def test_without_a_description_the_user_is_asked(build, checkpoint):
    path = checkpoint(model := build())
    content = torch.load(path, weights_only=True)
    del content["vitscope"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"--model\.num_heads"):
        load(path)
    again, report = load_with_report(path, num_heads=3)
    images = torch.randn(2, 3, 30, 30)
    assert torch.equal(again.eval()(images), model(images))
    assert "norm_eps=1e-06" in report.assumed
    torch.save({**content, "vitscope": {"pool": 3}}, path)
    with pytest.raises(UserError, match="has an invalid description of its model"):
        load(path)


def test_the_encoder_of_pretraining(build, tmp_path):
    model = build(num_classes=0)
    pretrained = MaskedAutoencoder(model.encoder, decoder_dim=8, decoder_depth=1, decoder_heads=2)
    state = {f"model.{name}": value for name, value in pretrained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    again, report = load_with_report(tmp_path / "last.ckpt", num_heads=3)
    images = torch.randn(2, 3, 30, 30)
    assert isinstance(again, Classifier)
    assert torch.equal(again.eval()(images), model(images))
    others = len(state) - len(model.state_dict())
    assert report.dropped == [
        f"model.decoder.embed.mask_token ... ({others} tensors, not of an encoder or a classifier)"
    ]
