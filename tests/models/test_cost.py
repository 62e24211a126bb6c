"""What a model costs, against the sums of a textbook and against what autograd keeps of a real pass."""

import pytest
import torch

from vit.models.classifier import Classifier
from vit.models.cost import cost
from vit.models.encoder import image_encoder


def build(pool, **options):
    sizes = {"image_size": (20, 15), "patch_size": (5, 3), "embed_dim": 24, "depth": 3, "num_heads": 2}
    return Classifier(image_encoder(**{**sizes, **options}), 7, pool=pool)


def test_flops_are_those_of_the_formula():
    """Of a projection of n tokens from a to b channels 2nab, of attention 2nmd twice."""
    N, D, patches = 21, 24, 20
    block = 2 * N * D * 3 * D + 2 * (2 * N * N * D) + 2 * N * D * D + 2 * (2 * N * D * 4 * D)
    embed, head = 2 * patches * (3 * 5 * 3) * D, 2 * D * 7
    assert cost(build("mean"), (20, 15)).flops == embed + 3 * block + head
    # The last block works for the class token alone, where that is all that the head reads.
    last = 2 * D * D + 2 * N * D * 2 * D + 2 * (2 * N * D) + 2 * D * D + 2 * (2 * D * 4 * D)
    assert cost(build("class"), (20, 15)).flops == embed + 2 * block + last + head


@pytest.mark.parametrize("size", [(20, 15), (10, 9)])
@pytest.mark.parametrize(
    ("pool", "options"),
    [("class", {}), ("mean", {"num_registers": 3, "init_values": 0.1}), ("attention", {"qk_norm": True}),
     ("class", {"mlp": "swiglu", "embed_norm": True, "in_chans": 2})],
)  # fmt: skip
def test_activations_are_what_autograd_keeps(pool, options, size):
    model = build(pool, **options)
    images = torch.randn(1, options.get("in_chans", 3), *size)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    given = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), images)}
    expected = sum(size for place, (_, size) in kept.items() if place not in given)
    assert output.grad_fn is not None
    assert cost(model, size).activations == expected


def test_nothing_of_the_model_is_touched():
    model = build("class").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, (20, 15))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
