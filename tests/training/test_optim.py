"""Parameter groups, optimizers and the schedule, against values worked by hand."""

import csv
import inspect
from dataclasses import asdict

import pytest
import timm.optim
import torch

from tests.training.noise import Noise, noise_task
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.options import OptimOptions
from vit.training.classification import ClassificationTask
from vit.training.fit import fit
from vit.training.optim import (
    choose_trained,
    keep_frozen_still,
    new_optimizer,
    parameter_groups,
    scaled_lr,
    warmup_cosine,
)
from vit.training.task import TrainingTask

SIZES = {"image_size": (10, 21), "patch_size": (5, 7), "embed_dim": 22, "depth": 2, "num_heads": 2}


@pytest.fixture
def model():
    options = {"dist_token": True, "num_registers": 3, "init_values": 0.1, "qk_norm": True}
    return Classifier(image_encoder(**SIZES, **options), 5)


def settings_of(model, **options):
    """{name: (lr, weight_decay)} of every parameter that is in a group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **options)
    pairs = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs))  # none twice
    return dict(pairs)


def test_each_layer_learns_at_its_own_rate(model):
    found = settings_of(model, lr=8.0, weight_decay=0.1, layer_decay=0.5)
    assert found.keys() == dict(model.named_parameters()).keys()
    # Two blocks: embedding 0, blocks 1 and 2, head 3. Rates 8 · 0.5 ** (3 - layer).
    rates = {
        "encoder.embed.": 1.0,
        "encoder.blocks.0.": 2.0,
        "encoder.blocks.1.": 4.0,
        "encoder.norm.": 8.0,
        "head.": 8.0,
    }
    for start, rate in rates.items():
        assert {lr for name, (lr, _) in found.items() if name.startswith(start)} == {rate}


def test_only_matrices_are_decayed(model):
    found = settings_of(model, lr=1.0, weight_decay=0.1)
    decayed = {name for name, (_, decay) in found.items() if decay}
    matrices = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    expected = {f"encoder.blocks.{block}.{name}.weight" for block in (0, 1) for name in matrices}
    assert decayed == expected | {"encoder.embed.patch_embed.proj.weight", "head.weight"}
    assert {decay for _, decay in found.values()} == {0.0, 0.1}
    assert {lr for lr, _ in found.values()} == {1.0}
    for name in ("pos_embed", "cls_token", "dist_token", "reg_token"):
        assert found[f"encoder.embed.{name}"] == (1.0, 0.0)


def test_groups_are_few(model):
    # Embedding, two blocks, norm and head; each with and without decay.
    assert len(parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)) == 8


def test_an_optimizer_takes_the_groups(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, lr=1.0, weight_decay=0.0, layer_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.head.bias, before["head.bias"] - 1)
    torch.testing.assert_close(model.encoder.embed.pos_embed, before["encoder.embed.pos_embed"] - 1 / 8)


def test_a_probe_trains_the_head_alone(model):
    choose_trained(model, "head")
    found = settings_of(model, lr=3.0, weight_decay=0.1, layer_decay=0.5)
    assert found == {"head.weight": (3.0, 0.1), "head.bias": (3.0, 0.0)}
    model(torch.randn(2, 3, 10, 21)).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    choose_trained(model, "all")
    assert settings_of(model, lr=3.0, weight_decay=0.1).keys() == dict(model.named_parameters()).keys()


def test_nothing_is_computed_below_the_first_block_that_learns(model):
    choose_trained(model, "blocks:1")
    found = settings_of(model, lr=3.0, weight_decay=0.1, layer_decay=0.5)
    assert {name.split(".")[2] for name in found if "blocks" in name} == {"1"}
    assert {name for name in found if "blocks" not in name} == {
        "encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias",
    }  # fmt: skip
    graphs = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    model(torch.randn(2, 3, 10, 21)).sum().backward()
    assert graphs == [False, True]
    keep_frozen_still(model.train())
    assert [block.training for block in model.encoder.blocks] == [False, True]


def test_more_blocks_than_there_are_are_refused(model):
    with pytest.raises(UserError, match=r"--optim\.trained is blocks:3, but the model has 2 blocks"):
        choose_trained(model, "blocks:3")


def test_frozen_weights_are_in_no_group(model):
    model.encoder.embed.requires_grad_(False)
    found = settings_of(model, lr=1.0, weight_decay=0.1)
    assert not any(name.startswith("encoder.embed.") for name in found)
    assert "encoder.blocks.0.norm1.weight" in found


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 4),
        (1, 2 / 4),
        (2, 3 / 4),
        (3, 1.0),
        (5, 0.1 + 0.9 * 3 / 4),  # a third of the way: cos 60° = 1/2
        (6, 0.1 + 0.9 / 2),
        (7, 0.1 + 0.9 * 1 / 4),
        (9, 0.1),
        (20, 0.1),
    ],
)
def test_warm_up_then_cosine(step, factor):
    assert warmup_cosine(step, warmup_steps=3, total_steps=9, min_lr=0.1) == pytest.approx(factor)


def test_no_warm_up_starts_at_the_top():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10, min_lr=0.0) == 1
    assert warmup_cosine(5, warmup_steps=0, total_steps=10, min_lr=0.0) == pytest.approx(0.5)
    assert warmup_cosine(10, warmup_steps=0, total_steps=10, min_lr=0.0) == pytest.approx(0)


def test_a_warm_up_takes_at_most_half_of_the_run():
    factors = [warmup_cosine(step, warmup_steps=9, total_steps=4, min_lr=0.0) for step in range(5)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])


def test_adamw_is_torchs_fused_one(model):
    optimizer = new_optimizer("adamw", parameter_groups(model, lr=1.0, weight_decay=0.1), beta2=0.95)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("name", ["sgd", "lion", "lamb", "muon"])
def test_others_are_timms_with_the_rates_and_decays_of_the_groups(model, name):
    groups = parameter_groups(model, lr=8.0, weight_decay=0.1, layer_decay=0.5)
    expected = [(group["lr"], group["weight_decay"]) for group in groups]
    optimizer = new_optimizer(name, groups, beta2=0.95)
    assert type(optimizer) is timm.optim.get_optimizer_class(name, bind_defaults=False)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == expected


def test_an_unknown_optimizer_is_refused_with_the_nearest(model):
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    with pytest.raises(UserError, match=r"--optim.name is adamm \(did you mean 'adam'\?\)\.\nAllowed are"):
        new_optimizer("adamm", groups, beta2=0.95)
    with pytest.raises(UserError, match="bnbadamw8bit can't be used here"):  # without its package
        new_optimizer("bnbadamw8bit", groups, beta2=0.95)


@pytest.mark.parametrize(("rule", "lr"), [("linear", 0.5), ("sqrt", 0.25)])
def test_the_rate_follows_the_images_a_step(rule, lr):
    assert scaled_lr(0.125, rule=rule, images=64, base_size=16) == lr


def test_every_option_reaches_a_task():
    options = OptimOptions(lr=1.0, ema=0.5, trained="blocks:2", mixup=0.25)
    wired = ("clip_grad", "class_weights", "head_init", "neighbours")  # which fit and the wiring take
    given = {name: getattr(options, name) for name in wired}
    assert given | options.movement() | options.classification() == asdict(options)
    for taken, kind in ((options.movement(), TrainingTask), (options.classification(), ClassificationTask)):
        assert taken.keys() <= inspect.signature(kind).parameters.keys()


@pytest.mark.parametrize("trained", ["blocks", "blocks:0", "block:2", "heads", "blocks:-1"])
def test_what_is_no_part_of_a_model_can_not_learn(trained):
    with pytest.raises(UserError, match=r"allowed are all, head, lora and blocks:K"):
        OptimOptions(trained=trained)


def test_each_image_counts_the_same_in_a_smaller_batch_too(tmp_path):
    """6 images in batches of 4: the gradient of the second, of 2, is half that of its mean loss."""
    seen = []

    class Watching(ClassificationTask):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            mean = torch.nn.functional.cross_entropy(self.model(batch["image"]), batch["target"])
            seen.append((len(batch["image"]), loss.item() / mean.item()))
            return loss

    fit(noise_task(Watching), Noise(train=6), tmp_path, max_epochs=1, precision="fp32", device="cpu")
    assert [count for count, _ in seen] == [4, 2]
    assert [share for _, share in seen] == pytest.approx([1, 0.5])
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        told = [row["train_loss_epoch"] for row in csv.DictReader(file) if row["train_loss_epoch"]]
    assert float(told[0]) > 0.3  # the mean of the images, not of what was made smaller
