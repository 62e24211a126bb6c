"""What every method returns, and what they share: the class that is explained, and the positions of tokens."""

from dataclasses import dataclass

from torch import Tensor

from vit.models.classifier import Classifier


@dataclass(frozen=True)
class Explanation:
    """Maps of a batch, and the model's output.

    Args:
        maps: (B, grid_h, grid_w) float32, relevance of each patch.
        logits: (B, num_classes) of the same forward pass; for a model without a head, its pooled vector.
        keys: (B, H, N, Dh) keys of the last block, if the method recorded them; otherwise None.
    """

    maps: Tensor
    logits: Tensor
    keys: Tensor | None = None


def to_grid(model: Classifier, images: Tensor, relevance: Tensor) -> Tensor:
    """(B, N) relevance of tokens -> (B, grid_h, grid_w) of patches; prefix tokens have no position in the image."""
    return relevance[:, model.encoder.num_prefix_tokens :].unflatten(1, model.encoder.grid_of(images))


def chosen_classes(logits: Tensor, target: Tensor | None) -> Tensor:
    """(B,) the classes that are explained: the target, or the predicted ones.

    Raises:
        ValueError: for a target that is not a class of the model.
    """
    if target is None:
        return logits.argmax(dim=1)
    num_classes = logits.shape[1]
    if not ((target >= 0) & (target < num_classes)).all():
        raise ValueError(f"target is {target.tolist()}; the model has the classes 0 to {num_classes - 1}")
    return target.clone()  # a tensor made in inference_mode can't be saved for a backward pass, but its clone can
