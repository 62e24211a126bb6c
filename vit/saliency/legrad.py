"""LeGrad (Bousselham et al. 2024): how the class score of each block's tokens would grow with its attention."""

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import row_tiles


def legrad(blocks: list[Recorded], gradients: list[Tensor]) -> Tensor:
    """Relevance (B, N) of each token: the sum over blocks l of

        E_l[j] = 1 / (H N) Σ_h Σ_i relu(dA_l)[h, i, j],    dA_l = ∂ s_l / ∂ A_l

    where s_l is the class's score from block l's output, read like that of the last block (section 3 of the paper,
    except for the 1 / L of the mean over blocks and the scaling to 0..1, which only matter for drawing). dA is dO vᵀ,
    so there is no map in the autograd graph; the attention itself is not needed.

    Args:
        blocks: as recorded, with values.
        gradients: gradient of each block's score with respect to the output of its attention, (B, H, Q, Dh); queries
            beyond Q have none.
    """
    total = torch.zeros(blocks[0].k.shape[0], blocks[0].k.shape[2], device=blocks[0].k.device)
    with torch.autocast(total.device.type, enabled=False):
        for recorded, gradient in zip(blocks, gradients, strict=True):
            for image in range(len(total)):  # one at a time: the tiles of a batch would not fit a CPU's caches
                total[image] += _of_block(recorded.of(slice(image, image + 1)), gradient[image : image + 1])
    return total


def _of_block(recorded: Recorded, gradient: Tensor) -> Tensor:
    """E_l (N,) of one image, computed in tiles of query rows."""
    assert recorded.v is not None
    v_transposed = recorded.v.float().transpose(-2, -1)  # (1, H, Dh, N)
    heads, num_tokens = v_transposed.shape[1], v_transposed.shape[3]
    found = torch.zeros(num_tokens, device=v_transposed.device)
    for rows in row_tiles(recorded):
        found += (gradient[:, :, rows].float() @ v_transposed).relu_().sum(dim=(0, 1, 2))
    return found / (heads * num_tokens)
