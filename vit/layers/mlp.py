"""The feed-forward half of a block, which processes each token by itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016) that SigLIP was trained with."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


class Mlp(nn.Module):
    """Linear, activation, linear (Vaswani et al. 2017, section 3.3). (B, N, D) -> (B, N, D).

    Args:
        embed_dim: D.
        hidden_dim: width between the two linear layers.
        act: one of ACTIVATIONS.

    Raises:
        ValueError: for another activation.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, act: str = "gelu"):
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act is {act!r}; allowed are {', '.join(ACTIVATIONS)}")
        self.act = ACTIVATIONS[act]
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """silu(x W₁) · (x W₂), then a third matrix (Shazeer 2020), with W₁ and W₂ in one, as in DINOv2's ViT-g.

    (B, N, D) -> (B, N, D).

    Args:
        embed_dim: D.
        hidden_dim: width of W₁ and W₂ together, an even number.

    Raises:
        ValueError: for an odd hidden_dim.
    """

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        if hidden_dim % 2:
            raise ValueError(f"hidden_dim {hidden_dim} of a SwiGLU is odd; it must be even, to be split into halves")
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim // 2, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)
