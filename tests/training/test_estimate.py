"""What a run takes, against what can be counted by hand."""

import pytest
import torch
from torch import nn

from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.training.estimate import Estimate, _loss, estimate_training, kept_activations


class OneLayer(nn.Module):
    """Pixels of 2 x 3 images through one matrix: backward needs the image, and the logits' log-softmax."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(18, 5)

    def forward(self, images):
        return self.layer(images.flatten(1))


def test_activations_are_what_backward_needs():
    # float32: 7 images of 18 values, 7 x 5 log-probabilities, a scalar of the loss, and int64 targets
    model, images = OneLayer(), torch.rand(7, 3, 2, 3)
    assert kept_activations(model, lambda: _loss(model, images)) == pytest.approx(4 * 7 * (18 + 5) + 8 * 7, abs=16)


def test_memory_by_hand():
    assert Estimate(10.0, weight_bytes=1000, activation_bytes=30).memory(8) == 1240


def test_of_a_small_model():
    encoder = image_encoder(image_size=(14, 14), patch_size=(7, 7), embed_dim=22, depth=2, num_heads=2)
    model = Classifier(encoder, 3, labels=("a", "b", "c"), preprocessing=Preprocessing((14, 14)))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = estimate_training(model, 3, device=torch.device("cpu"))
    assert found.images_per_second > 0
    assert found.weight_bytes == 4 * 4 * sum(weight.numel() for weight in model.parameters())
    # Two blocks on five tokens keep at least q, k, v and the two sides of the MLP of each, 11 vectors a token.
    assert found.activation_bytes > 4 * 2 * 5 * 11 * 22
    assert found.activation_bytes < 10 * 4 * 2 * 5 * 11 * 22
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    model.encoder.requires_grad_(False)
    probe = estimate_training(model, 3, device=torch.device("cpu"))
    assert probe.activation_bytes < found.activation_bytes / 4
