"""Grad-CAM (Selvaraju et al. 2017) on the tokens of a Vision Transformer, at a layer where it is defined."""

import torch
from torch import Tensor

from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation, chosen_classes
from vit.saliency.record import differentiable


def grad_cam_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """Grad-CAM of the target's logit y, at what the last block's attention is given, its first norm's output a:

        α = mean over patches of ∂y / ∂a     (D,)       (equation 1)
        map = relu(a · α)                    (P,)       (equation 2)

    The last block's own output would not do: a head that reads the class token gives the patches there a gradient
    of zero. Before the last attention every patch still counts, by its key and its value.

    Raises:
        ValueError: for blocks that are normalised after their attention.
    """
    last = model.encoder.blocks[-1]
    if last.post_norm:
        raise ValueError(
            "grad_cam reads the norm before the last block's attention, but this model's blocks have theirs after it; "
            "try method='attribution'"
        )
    kept: list[Tensor] = []

    def begin_here(module: object, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())  # the graph starts here: nothing below is asked for
        return kept[0]

    with differentiable(model):
        hook = last.norm1.register_forward_hook(begin_here)  # type: ignore[union-attr]
        try:
            logits = model(images)
        finally:
            hook.remove()
        chosen = chosen_classes(logits, target)
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), kept)
    prefix = model.encoder.num_prefix_tokens
    tokens, gradient = kept[0].detach()[:, prefix:].float(), gradient[:, prefix:].float()
    maps = (tokens * gradient.mean(dim=1, keepdim=True)).sum(dim=2).relu()
    return Explanation(maps.unflatten(1, model.encoder.grid_of(images)), logits.detach().float())
