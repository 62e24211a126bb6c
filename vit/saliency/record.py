"""Recording: the inputs of each block's fused attention, without a slower path and without an N x N map."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vit.layers.attention import Attention, Recorded
from vit.models.captioner import Captioner
from vit.models.decoder import Decoder
from vit.models.encoder import Encoder


class Trace:
    """The recorded attention of the last forward pass, block by block.

    It holds 2 to 4 times B · N · D numbers per block, and never an N x N map.
    """

    def __init__(self, attentions: list[Attention], depth: int):
        self._attentions: list[Attention] | None = attentions
        self._depth = depth  # of the encoder, whose blocks may be followed by attention pooling
        self._kept: list[Recorded | None] = []

    @property
    def blocks(self) -> list[Recorded]:
        """One `Recorded` per block: q (B, H, Q, Dh), k and v (B, H, N, Dh), with gradients also output (B, H, Q, Dh).

        Q is N, except in a last block that only computed its first tokens (`read` of `Encoder.forward`).

        Raises:
            RuntimeError: when no forward pass was recorded.
        """
        found = self._found()[: self._depth]
        blocks = [recorded for recorded in found if recorded is not None]
        if len(blocks) < len(found):
            raise RuntimeError("no forward pass was recorded: call the model inside `with record(model) as trace:`")
        return blocks

    @property
    def pooling(self) -> Recorded | None:
        """The attention pooling, like a block: its single query q (B, H, 1, Dh), which attends to the P patches, k and
        v (B, H, P, Dh). None for other pooling, and if the forward pass ended before it."""
        behind = self._found()[self._depth :]
        return behind[0] if behind else None

    def gradients(self, target: Tensor, *, keep: bool = False) -> list[Tensor]:
        """d target / d output of each block, (B, H, Q, Dh), and finally of the attention pooling, if there is one;
        needs `record(model, gradients=True)`.

        Args:
            target: the scalars to explain, of any shape; their sum is differentiated, so that the images of a batch,
                which don't affect each other, each get their own gradient.
            keep: keep the graph, for more targets of the same forward pass.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return list(torch.autograd.grad(target.sum(), self._outputs(), retain_graph=keep))

    def gradient(self, target: Tensor, block: int) -> Tensor:
        """Like `gradients`, for a single block; the graph is kept for more."""
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(target.sum(), self._outputs()[block], retain_graph=True)[0]

    def _outputs(self) -> list[Tensor]:
        recorded = self.blocks + [self.pooling] * (self.pooling is not None)
        return [each.output for each in recorded if each is not None and each.output is not None]

    def _found(self) -> list[Recorded | None]:
        return self._kept if self._attentions is None else [a.recorded for a in self._attentions]

    def _close(self) -> None:
        self._kept, self._attentions = self._found(), None


@contextmanager
def record(model: nn.Module, *, values: bool = True, gradients: bool = False) -> Iterator[Trace]:
    """Records the attention of every block, and of attention pooling, within the context; the results of the forward
    pass do not change.

        with record(model) as trace:
            logits = model(images)
        trace.blocks[0].q

    The recording is done by `Attention.forward` itself, so it works compiled, under autocast and nested. On exit, even
    by an exception, everything is restored.

    Args:
        model: an Encoder, or a model that wraps one as `.encoder`. For a Decoder the trace has the self-attention of
            all blocks, then their cross-attention; for a Captioner its encoder's blocks, then its decoder's.
        values: also keep v. q, k and v are references to the kernel's inputs; without v, q and k are copies, and the
            projection that all three were views of is freed, which saves a third of the memory.
        gradients: make `trace.gradients` work, even if the caller is inside `torch.inference_mode`. The graph then
            starts at the first block's attention and has no gradient of any encoder weight. A compiled model runs
            uncompiled, with numbers that may differ from the compiled ones by rounding.

    Raises:
        ValueError: for a model without an Encoder.
    """
    owner, attentions, depth = _recorded_parts(model)
    before = [(attention.recording, attention.recorded) for attention in attentions]
    wanted = "qkvo" if gradients else "qkv" if values else "qk"
    trace = Trace(attentions, depth)
    for attention in attentions:
        attention.recording, attention.recorded = max(attention.recording, wanted, key=len), None
    try:
        with differentiable(owner) if gradients else nullcontext():
            yield trace
    finally:
        trace._close()
        for attention, (recording, recorded) in zip(attentions, before, strict=True):
            # An enclosing record also saw this forward pass.
            attention.recorded = (attention.recorded or recorded) if recording else None
            attention.recording = recording


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Enables gradients of inputs and intermediate results, whatever mode the caller is in, but not of the module's
    weights.

    A compiled graph has no intermediate results: for autograd it is a single step from its inputs to its outputs. So
    compiled models run uncompiled here.
    """
    frozen = [weight for weight in module.parameters() if weight.requires_grad]
    compiler_is_loaded = "torch._dynamo" in sys.modules  # loading it takes a second, in vain if nothing is compiled
    stance = torch.compiler.set_stance("force_eager") if compiler_is_loaded else nullcontext()
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), stance:
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


def _recorded_parts(model: nn.Module) -> tuple[nn.Module, list[Attention], int]:
    """(The module to record, its attentions, the number of blocks among them; after those comes the pooling)."""
    inner = _unwrapped(model)
    if isinstance(inner, Decoder):
        attentions = [*inner.attentions(), *inner.cross_attentions()]
        return inner, attentions, len(attentions)
    if isinstance(inner, Captioner):
        decoder = inner.decoder
        attentions = [*inner.encoder.attentions(), *decoder.attentions(), *decoder.cross_attentions()]
        return inner, attentions, len(attentions)
    encoder = find_encoder(model)
    return encoder, [*encoder.attentions(), *_pooling_of(model)], len(encoder.blocks)


def find_encoder(model: nn.Module) -> Encoder:
    """The Encoder that `model` is or wraps.

    Raises:
        ValueError: when there is none.
    """
    inner = _unwrapped(model)
    encoder = inner if isinstance(inner, Encoder) else getattr(inner, "encoder", None)
    encoder = encoder if encoder is None else _unwrapped(encoder)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"a {type(inner).__name__} has no vit Encoder to record; load it with vit.load first")
    return encoder


def _pooling_of(model: nn.Module) -> list[Attention]:
    """The attention of a model's attention pooling, in a list; empty if there is none."""
    pool = getattr(_unwrapped(model), "attn_pool", None)
    return [] if pool is None else [_unwrapped(pool).attn]


def _unwrapped(module: nn.Module) -> Any:
    """The module that torch.compile wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)
