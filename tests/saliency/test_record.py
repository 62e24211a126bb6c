"""Recording changes no number and leaves no trace, however the model is run."""

import gc

import pytest
import torch
from torch import nn

from vit.layers.attention import Attention, attention_weights
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency.record import record

B, N, D, H = 3, 1 + 5 * 7, 22, 2
SIZES = {"image_size": (25, 21), "patch_size": (5, 3), "embed_dim": D, "depth": 2, "num_heads": H}


@pytest.fixture
def model(randomise):
    return randomise(Classifier(image_encoder(**SIZES, qk_norm=True), 5))


@pytest.fixture
def images():
    return torch.randn(B, 3, 25, 21)


@pytest.fixture
def compiled(model):
    torch._dynamo.reset()
    yield torch.compile(model, backend="aot_eager")
    torch._dynamo.reset()


def state_of(model):
    """All that a recording could leave behind."""
    return (
        [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), m.forward.__func__) for m in model.modules()],
        [(b.attn.recording, b.attn.recorded) for b in model.encoder.blocks],
        set(model.state_dict()),
    )


def assert_equal_traces(first, second, **tolerance):
    assert len(first) == len(second) == 2
    for ours, theirs in zip(first, second, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("gradients", [False, True])
def test_no_number_changes(model, images, gradients):
    plain = model(images)
    with record(model, gradients=gradients):
        assert torch.equal(model(images), plain)
    assert torch.equal(model(images), plain)


def test_what_is_recorded_is_what_attention_computed(model, images):
    """The recorded q, k, v and output belong together, and give the block's output through its own weights."""
    tokens = model.encoder.embed(images)
    with record(model.encoder, gradients=True) as trace:
        model.encoder.encode(tokens)
    for block, recorded in zip(model.encoder.blocks, trace.blocks, strict=True):
        assert recorded.q.shape == recorded.k.shape == recorded.v.shape == recorded.output.shape == (B, H, N, D // H)
        torch.testing.assert_close(attention_weights(recorded.q, recorded.k) @ recorded.v, recorded.output)
        x = block.norm1(tokens)
        q, k, v = block.attn.qkv(x).reshape(B, N, 3, H, D // H).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(recorded.q, block.attn.q_norm(q), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(recorded.k, block.attn.k_norm(k), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(recorded.v, v, rtol=1e-4, atol=1e-5)
        tokens = block(tokens)


def test_without_values_queries_and_keys_are_copies_of_the_same(model, images):
    with record(model) as views, record(model, values=False) as nested:
        model(images)
    assert all(block.v is not None for block in nested.blocks)  # the outer record asked for more
    with record(model, values=False) as trace:
        model(images)
    for copy, view in zip(trace.blocks, views.blocks, strict=True):
        assert torch.equal(copy.q, view.q)
        assert torch.equal(copy.k, view.k)
        assert copy.v is None
        assert copy.output is None
        assert copy.k.untyped_storage().nbytes() == copy.k.nbytes  # keeps nothing else alive


def test_last_block_records_the_rows_that_were_read(model, images):
    with record(model) as trace:
        model(images)
    assert [block.q.shape[2] for block in trace.blocks] == [N, 1]
    assert [block.k.shape[2] for block in trace.blocks] == [N, N]


def test_gradients_are_those_of_autograd(model, images):
    with record(model, gradients=True) as trace:
        logits = model(images)
        gradients = trace.gradients(logits[:, 2])
    outputs = []
    hooks = [
        block.attn.proj.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
        for block in model.encoder.blocks
    ]
    expected = torch.autograd.grad(model(images)[:, 2].sum(), outputs)
    for hook in hooks:
        hook.remove()
    assert len(gradients) == 2
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.transpose(1, 2).flatten(2), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_gradients_work_inside(model, images, surroundings):
    with record(model, gradients=True) as trace:
        logits = model(images)
        expected = trace.gradients(logits.gather(1, logits.argmax(1, keepdim=True)))
    with surroundings():
        made_inside = images.clone()
        with record(model, gradients=True) as trace:
            logits = model(made_inside)
            gradients = trace.gradients(logits.gather(1, logits.argmax(1, keepdim=True)))
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (surroundings is torch.inference_mode)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gradients", [False, True])
def test_everything_is_as_before(model, images, gradients):
    model.encoder.blocks[1].mlp.fc1.weight.requires_grad_(False)
    model.encoder.blocks[0].train()
    model.head.bias.grad = torch.ones(5)
    before = state_of(model)
    with record(model, gradients=gradients) as trace:
        logits = model(images)
        if gradients:
            trace.gradients(logits[:, 0])
    assert state_of(model) == before
    assert (model.head.bias.grad == 1).all()


@pytest.mark.parametrize("gradients", [False, True])
def test_everything_is_as_before_after_an_exception(model, images, gradients):
    before = state_of(model)
    with record(model, gradients=gradients), pytest.raises(ValueError, match="possible heights"):
        model(images[:, :, :24])
    assert state_of(model) == before

    def interrupted():
        with record(model, gradients=gradients):
            model(images)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state_of(model) == before


def test_training_goes_on_as_usual_afterwards(model, images):
    model.train()
    model(images).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with record(model, gradients=True):
        model(images)
    model(images).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("outer_gradients", [False, True])
@pytest.mark.parametrize("inner_gradients", [False, True])
def test_nested_recordings_both_see_the_forward(model, images, outer_gradients, inner_gradients):
    before = state_of(model)
    with record(model, gradients=outer_gradients) as outer:
        model(images[:1])
        with record(model, gradients=inner_gradients) as inner:
            model(images)
        assert_equal_traces(outer.blocks, inner.blocks, rtol=0, atol=0)
        assert inner.blocks[0].q.shape[0] == B
        logits = model(images[:2])
        if outer_gradients:
            assert [g.shape[0] for g in outer.gradients(logits[:, 0])] == [2, 2]
    assert outer.blocks[0].q.shape[0] == 2
    assert inner.blocks[0].q.shape[0] == B
    assert state_of(model) == before


def test_outer_keeps_its_forward_when_the_inner_sees_none(model, images):
    with record(model) as outer:
        model(images)
        with record(model) as inner, pytest.raises(RuntimeError, match="no forward pass was recorded"):
            _ = inner.blocks
    assert outer.blocks[0].q.shape[0] == B


@pytest.mark.parametrize("gradients", [False, True])
def test_works_under_autocast(model, images, gradients):
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images)
        with record(model, gradients=gradients) as trace:
            logits = model(images)
            if gradients:
                assert all(g.isfinite().all() and g.any() for g in trace.gradients(logits[:, 1]))
    assert torch.equal(logits, plain)
    assert {value.dtype for block in trace.blocks for value in block if value is not None} == {torch.bfloat16}


def test_works_compiled(model, compiled, images):
    with torch.no_grad():
        plain = compiled(images)
        with record(model) as expected:
            model(images)
        with record(compiled) as trace:
            assert torch.equal(compiled(images), plain)
        assert_equal_traces(trace.blocks, expected.blocks)
        assert torch.equal(compiled(images), plain)
        torch.testing.assert_close(plain, model(images))
        with record(compiled) as again:
            compiled(images[:2])
    assert again.blocks[0].q.shape[0] == 2


def test_gradients_work_compiled(model, compiled, images):
    before = state_of(model)
    with record(model, gradients=True) as trace:
        expected = trace.gradients(model(images)[:, 2])
    compiled(images)
    with record(compiled, gradients=True) as trace:
        gradients = trace.gradients(compiled(images)[:, 2])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert state_of(model) == before


def test_no_map_of_n_times_n_is_kept(model, images):
    def shapes():
        found = {tuple(x.shape) for x in gc.get_objects() if type(x) is torch.Tensor}
        return {shape for shape in found if shape.count(N) > 1}

    kept = set()

    def keep(tensor):
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), record(model, gradients=True) as trace:
        tokens = model.encoder(images)  # all of them, also in the last block
        assert (B, H, N, D // H) in kept  # the hooks do see what the graph keeps
        assert {shape for shape in kept if shape.count(N) > 1} == set()
        assert shapes() == set()
        trace.gradients(tokens[:, 0])
    assert all(value.numel() <= B * N * D for block in trace.blocks for value in block if value is not None)
    assert shapes() == set()


def test_blocks_before_a_forward_pass_are_refused(model, images):
    with record(model) as trace:
        with pytest.raises(RuntimeError, match="no forward pass was recorded"):
            _ = trace.blocks
        model.encoder.blocks[0](torch.randn(B, N, D))  # one block alone is no forward pass
        with pytest.raises(RuntimeError, match="no forward pass was recorded"):
            _ = trace.blocks
    with pytest.raises(RuntimeError, match="no forward pass was recorded"):
        _ = trace.blocks


def test_what_ran_before_the_recording_is_not_in_it(model, images):
    with record(model):
        model(images)
    with record(model) as trace, pytest.raises(RuntimeError, match="no forward pass"):
        _ = trace.blocks


def test_model_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match="a Linear has no vit Encoder"), record(nn.Linear(2, 3)):
        pass


@pytest.mark.parametrize("options", [{}, {"values": False}, {"gradients": True}])
@pytest.mark.parametrize("shape", [(1, N), (B, 1, 1, N), (1, H, N, N), (B, 1, N, N)])
def test_a_mask_is_recorded_for_each_image_and_head(model, images, options, shape):
    mask = torch.rand(shape) > 0.3
    mask[..., 0] = True
    with record(model, **options) as trace:
        model.encoder(images, mask=mask)
    for recorded in trace.blocks:
        assert recorded.mask.shape == (B, H, N, N)
        assert torch.equal(recorded.mask, mask.expand(B, H, N, N))
        assert recorded.mask.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()  # nothing is copied
        assert torch.equal(recorded.of(slice(1, 2)).mask, recorded.mask[1:2])


def test_the_rows_of_a_mask_are_those_that_were_read(model, images):
    mask = torch.rand(B, 1, N, N) > 0.3
    mask[..., 0] = True
    with record(model) as trace:
        model.encoder(images, mask=mask, read=2)
    assert torch.equal(trace.blocks[-1].mask, mask[:, :, :2].expand(B, H, 2, N))


def test_a_causal_mask_is_recorded_too(randomise):
    attention = randomise(Attention(D, H))
    attention.recording = "qkvo"
    attention(torch.randn(B, 5, D), is_causal=True)
    found = attention.recorded
    assert torch.equal(found.mask, torch.ones(5, 5).tril().bool().expand(B, H, 5, 5))
    torch.testing.assert_close(attention_weights(found.q, found.k, found.mask) @ found.v, found.output)
