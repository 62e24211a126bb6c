"""A step of masked pretraining beside steps that compute every patch.

    MAE            three quarters of the patches hidden: the encoder computes the visible quarter, the decoder all
    nothing hidden the same encoder, decoder and loss, all patches through both
    SimMIM         all places through the encoder, a linear layer in place of the decoder
    classifier     all patches through the encoder, cross-entropy of the class token

A step is forward, backward and a fused AdamW step over all weights. All run in turns in one process.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Table, begin, images_per_second, measure, options, ratio, report
from vit.models.classifier import Classifier
from vit.models.encoder import Encoder, image_encoder
from vit.models.masked import MaskedAutoencoder, SimMIM, patchify
from vit.models.variants import variant

MAE, UNHIDDEN, SIMMIM, CLASSIFIER = "MAE", "nothing hidden", "SimMIM", "classifier"
CLASSES = 1000


def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def unhidden_loss(model: MaskedAutoencoder, images: Tensor, counted: Tensor) -> Tensor:
    """The loss over `counted` patches, (B, P), of a model that was shown them all."""
    predicted = model(images, torch.zeros_like(counted)).patches
    return (predicted - patchify(images, model.patch_size))[counted].square().mean()


def steps(size: str, patch_size: int, images: Tensor, ratio: float) -> dict[str, Callable[[], None]]:
    """A step of each, by name."""

    def encoder() -> Encoder:
        shape = (images.shape[2], images.shape[3])
        return image_encoder(image_size=shape, patch_size=(patch_size,) * 2, **variant(size))

    mae, unhidden = (MaskedAutoencoder(encoder(), mask_ratio=ratio) for _ in range(2))
    simmim, classifier = SimMIM(encoder()), Classifier(encoder(), CLASSES)
    targets, counted = torch.randint(CLASSES, (len(images),)), mae.hide(images)
    return {
        MAE: step(mae, lambda: mae(images, mae.hide(images)).loss),
        UNHIDDEN: step(unhidden, lambda: unhidden_loss(unhidden, images, counted)),
        SIMMIM: step(simmim, lambda: simmim(images, simmim.hide(images)).loss),
        CLASSIFIER: step(classifier, lambda: F.cross_entropy(classifier(images), targets)),
    }


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("pretraining", __doc__ or "", rounds=9)
    parser.add_argument("--variant", default="pico", help="size (default pico)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side (default 64)")
    parser.add_argument("--patch-size", type=int, default=8, help="pixels a side of a patch (default 8)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default 64)")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="share hidden by MAE (default 0.75)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    images = torch.randn(chosen.batch, 3, chosen.image_size, chosen.image_size)
    calls = steps(chosen.variant, chosen.patch_size, images, chosen.mask_ratio)
    timings = measure(calls, rounds=chosen.rounds, warmup=chosen.warmup)
    table = Table("training step, median of the rounds (min..max)", ("", "images/s", "seconds / those of MAE"))
    table.rows = [(name, images_per_second(timings, name, chosen.batch), ratio(timings, name, MAE)) for name in calls]
    settings = {
        "model": f"ViT-{chosen.variant}/{chosen.patch_size} at {chosen.image_size} px, fp32",
        "hidden by MAE": f"{chosen.mask_ratio:.0%}",
        "batch": chosen.batch,
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
    }
    report("pretraining", arguments, machine, settings, [table], chosen.out)
    return [table]


if __name__ == "__main__":
    main()
