"""Our Classifier beside timm's and transformers' same model: images/s of the forward pass and of a training step.

All hold the same weights, and their logits must agree to 1e-4 before anything is timed. They run in turns in one
process. A training step is forward, cross-entropy, backward and a fused AdamW step over all weights.

Our last block computes the one token that the head reads, as the logits need no more; "ours, all tokens" computes
every token in every block, as the peers do, and tells how much of a ratio is due to that.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.harness import Table, Timings, begin, images_per_second, measure, options, ratio, report
from benchmarks.ours import classifier
from benchmarks.peers import TransformersTwin, timm_twin
from vit.inference import arithmetic
from vit.models.classifier import Classifier

OURS, ALL_TOKENS, TIMM, TRANSFORMERS = "ours", "ours, all tokens", "timm", "transformers"
Forward = Callable[[Tensor], Tensor]


def forwards(ours: Classifier, variant: str) -> tuple[dict[str, Forward], dict[str, nn.Module]]:
    """The forward pass of each variant, and the model whose weights it runs on."""
    peers = {TIMM: timm_twin(ours, variant), TRANSFORMERS: TransformersTwin(ours)}
    models = {OURS: ours, ALL_TOKENS: ours, **peers}

    def all_tokens(images: Tensor) -> Tensor:
        return ours.head(ours.pooled(ours.encoder(images)))

    return {OURS: ours, ALL_TOKENS: all_tokens, **peers}, models


@torch.inference_mode()
def largest_difference(calls: dict[str, Forward], images: Tensor) -> float:
    """The largest difference of any variant's logits from ours.

    Raises:
        AssertionError: when it is more than 1e-4: then they are not the same model.
    """
    expected = calls[OURS](images)
    difference = max((call(images) - expected).abs().max().item() for call in calls.values())
    assert difference <= 1e-4, f"the logits differ by {difference:.1e}; the models are not the same"
    return difference


def inference(call: Forward, images: Tensor, precision: str) -> None:
    """One forward pass."""
    with torch.inference_mode(), arithmetic(precision, images.device):
        call(images)


def training_step(
    call: Forward, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, precision: str
) -> None:
    """One step of training."""
    with arithmetic(precision, images.device):
        loss = F.cross_entropy(call(images), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(calls: dict[str, Forward], models: dict[str, nn.Module], chosen: argparse.Namespace) -> dict[str, Timings]:
    """The timings of each mode and precision that was asked for."""
    images = torch.randn(chosen.batch, 3, chosen.image_size, chosen.image_size)
    targets = torch.randint(1000, (chosen.batch,))
    take = partial(measure, rounds=chosen.rounds, warmup=chosen.warmup, min_seconds=chosen.min_seconds)
    found = {}
    for precision in chosen.precisions:
        steps = {name: partial(inference, call, images, precision) for name, call in calls.items()}
        found[f"forward, {precision}"] = take(steps)
    # After all forward passes, which ran with equal weights: now each learns on its own.
    optimizers = {
        id(model): torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for model in set(models.values())
    }
    for model in models.values():
        model.train()
    for precision in chosen.precisions:
        steps = {
            name: partial(training_step, call, optimizers[id(models[name])], images, targets, precision)
            for name, call in calls.items()
        }
        found[f"training step, {precision}"] = take(steps)
    return found


def tables(found: dict[str, Timings], batch: int) -> list[Table]:
    """Images/s, and how many times as fast as each peer we are."""
    rates = Table("images/s, median (min..max)", ("", OURS, ALL_TOKENS, TIMM, TRANSFORMERS))
    speeds = Table(
        "speed against peers, median of the rounds' ratios (min..max); above 1 ours is faster",
        ("", "ours / timm", "ours / transformers", "ours, all tokens / timm", "ours, all tokens / transformers"),
    )
    for mode, timings in found.items():
        rates.rows.append((mode, *(images_per_second(timings, name, batch) for name in rates.columns[1:])))
        pairs = [(peer, own) for own in (OURS, ALL_TOKENS) for peer in (TIMM, TRANSFORMERS)]
        # The speed of ours over the peer's is the peer's seconds over ours.
        speeds.rows.append((mode, *(ratio(timings, peer, own) for peer, own in pairs)))
    return [rates, speeds]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("encoder", __doc__ or "", rounds=15)
    parser.add_argument("--variant", default="small", choices=("tiny", "small", "base"), help="size (default small)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side (default 224)")
    parser.add_argument("--batch", type=int, default=8, help="images a call (default 8)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument(
        "--min-seconds", type=float, default=0.0, help="least time of one measurement (default: a call)"
    )
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    ours = classifier(chosen.variant, chosen.image_size)
    calls, models = forwards(ours, chosen.variant)
    difference = largest_difference(calls, torch.randn(2, 3, chosen.image_size, chosen.image_size))
    settings = {
        "model": f"ViT-{chosen.variant}/16 at {chosen.image_size} px",
        "batch": chosen.batch,
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "largest difference of logits": f"{difference:.1e}",
    }
    found = tables(timed(calls, models, chosen), chosen.batch)
    report("encoder", arguments, machine, settings, found, chosen.out)
    return found


if __name__ == "__main__":
    main()
