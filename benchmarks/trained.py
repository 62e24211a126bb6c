"""What a training step costs by what of the model learns, and with activation checkpointing.

The same ViT, batch and AdamW; variants run in turns in one process. The memory is what the forward pass keeps for the
backward pass, counted exactly, weights left out.
"""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.encoder import training_step
from benchmarks.harness import Table, begin, images_per_second, measure, options, ratio, report
from benchmarks.ours import classifier
from vit.models.classifier import Classifier
from vit.training.estimate import kept_activations
from vit.training.optim import choose_trained, new_optimizer, parameter_groups

EVERYTHING = "all"
TRAINED = (EVERYTHING, "blocks:6", "blocks:2", "lora", "head")
CHECKPOINTED = "all, activation checkpointing"


def variants(batch: int, image_size: int, variant: str) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """A training step of each way, and the bytes that its forward pass keeps of an image."""
    images = torch.randn(batch, 3, image_size, image_size)
    targets = torch.randint(27, (batch,))
    plain = classifier(variant, image_size, 27).train()
    steps: dict[str, Callable[[], object]] = {}
    kept = {}
    for name in (*TRAINED, CHECKPOINTED):
        model: Classifier = deepcopy(plain)
        choose_trained(model, EVERYTHING if name == CHECKPOINTED else name)
        model.encoder.activation_checkpointing = name == CHECKPOINTED
        optimizer = new_optimizer("adamw", parameter_groups(model, lr=1e-5, weight_decay=0.05), beta2=0.999)
        kept[name] = kept_activations(model, lambda model=model: F.cross_entropy(model(images), targets)) // batch
        steps[name] = partial(training_step, model, optimizer, images, targets, "fp32")
    return steps, kept


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("trained", __doc__ or "", rounds=9)
    parser.add_argument("--variant", default="small", choices=("tiny", "small", "base"), help="size (default small)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels a side (default 112)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    steps, kept = variants(chosen.batch, chosen.image_size, chosen.variant)
    timings = measure(steps, rounds=chosen.rounds, warmup=chosen.warmup)
    table = Table(
        "a training step, median of the rounds (min..max)",
        ("what learns", "images/s", "speed / all", "MiB an image kept for the backward pass"),
    )
    for name in steps:
        speed = ratio(timings, EVERYTHING, name)
        table.rows.append((name, images_per_second(timings, name, chosen.batch), speed, f"{kept[name] / 2**20:.1f}"))
    settings = {
        "model": f"ViT-{chosen.variant}/16 at {chosen.image_size} px, fp32",
        "batch": chosen.batch,
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
    }
    report("trained", arguments, machine, settings, [table], chosen.out)
    return [table]


if __name__ == "__main__":
    main()
