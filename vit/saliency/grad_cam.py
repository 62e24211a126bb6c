"""Grad-CAM (Selvaraju et al. 2017) on the tokens of a Vision Transformer, at a layer where it is defined."""

import torch
from torch import Tensor

from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation, chosen_classes
from vit.saliency.record import differentiable


def grad_cam_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """Grad-CAM of the target's logit y at the input of the last block's attention, the output a of its first norm:

        α = mean over patches of ∂y / ∂a     (D,)       (equation 1)
        map = relu(a · α)                    (P,)       (equation 2)

    The output of the last block would not work: if the head reads the class token, the gradient of the patches there is
    zero. Before the last attention every patch still has an effect, through its key and its value.

    Raises:
        ValueError: for post-norm blocks, or a target that is not a class of the model.
    """
    last = model.encoder.blocks[-1]
    if last.post_norm:
        raise ValueError(
            "grad_cam reads the norm before the last block's attention, but this model's blocks have theirs after it; "
            "try method='attribution'"
        )
    kept: list[Tensor] = []

    def begin_here(module: object, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())  # the graph starts here: no gradients below are needed
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
