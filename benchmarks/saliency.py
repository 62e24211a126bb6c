"""What saliency maps cost beside a plain forward pass: time, memory, and whether they are right.

Time, in turns in one process, fp32:
    forward           our model(images), fused
    timm's forward    timm's model with the same weights, fused
    rollout           our explain_batch: recorded forward, walk, map on the grid of patches, logits
    textbook          matrices of N x N of timm's unfused attention, every map kept, as in vit-explain
    textbook, lean    the same, each block's map multiplied in its hook and dropped

All keep the memory that they free (--malloc kept), as `vit` does: getting it back from the system page by page costs
a plain forward pass and a recorded one so much that the rest could not be told from it. --malloc default is how a
Python program finds them that does nothing about it.

Memory: each variant makes one call in a process of its own, which imports what that variant needs and no more. One
ratio is that of the whole processes' peaks, their imports included; the other that of what the call itself added.
timm's imports are larger than ours, so beside the textbook the second is the fair one.

Agreement: our map against the textbook's in float64, for weights that are made to attend sharply. Such weights
magnify the rounding of an fp32 forward pass, so the walk after a float64 one is compared too.

Attribution: our explain_batch(method="attribution") against one forward and backward pass of the predicted class's
logit, to all weights as in training, and to the image alone with frozen weights, which is the least. Textbook: maps of
N x N of timm's unfused attention and their gradients, all kept; left out where these alone would take more than
--most-memory.

The variants that keep N x N maps take so long on large images that they run in one round there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import timm
import torch

from benchmarks.harness import Table, Timings, Variants, begin, measure, options, ratio, report, spread
from benchmarks.memory import (
    AS_IT_GOES,
    ATTRIBUTION,
    BACKWARD,
    FORWARD,
    KEPT,
    KEPT_ATTRIBUTION,
    ROLLOUT,
    in_new_process,
)
from benchmarks.ours import classifier
from benchmarks.peers import timm_twin
from benchmarks.textbook import attribution_of_kept_maps, rollout_as_it_goes, rollout_of_kept_maps
from vit.foundation import keep_freed_memory
from vit.models.classifier import Classifier
from vit.models.variants import variant as keywords_of
from vit.saliency.explain import explain_batch

TIMM = "timm's forward"
TO_IMAGE = "forward + backward to the image"
EXPENSIVE = (KEPT, AS_IT_GOES, KEPT_ATTRIBUTION)
LARGE = 512  # pixels from which a round takes so long that fewer must do


class Case(NamedTuple):
    """An image size in pixels, and how many images a call."""

    image_size: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """From "224x8"."""
        image_size, batch = text.split("x")
        return cls(int(image_size), int(batch))

    @property
    def tokens(self) -> int:
        """Of an image, with patches of 16 px and a class token."""
        return (self.image_size // 16) ** 2 + 1

    def __str__(self) -> str:
        return f"{self.image_size} px, batch {self.batch} ({self.tokens:,} tokens)"


def time_rollout(case: Case, chosen: argparse.Namespace) -> Timings:
    """Seconds of the plain forward passes and of rollout in three ways."""
    ours = classifier(chosen.variant, case.image_size)
    peer = timm_twin(ours, chosen.variant)
    images = torch.randn(case.batch, 3, case.image_size, case.image_size)
    calls = {
        FORWARD: lambda: ours(images),
        TIMM: lambda: peer(images),
        ROLLOUT: lambda: explain_batch(ours, images, method="rollout"),
        KEPT: lambda: rollout_of_kept_maps(peer, images),
        AS_IT_GOES: lambda: rollout_as_it_goes(peer, images),
    }
    with torch.inference_mode():
        return timed(calls, case, chosen)


def time_attribution(case: Case, chosen: argparse.Namespace) -> Timings:
    """Seconds of attribution and of plain forward and backward passes."""
    ours = classifier(chosen.variant, case.image_size)
    frozen = deepcopy(ours).requires_grad_(False)
    peer = timm_twin(ours, chosen.variant).requires_grad_(False)
    images = torch.randn(case.batch, 3, case.image_size, case.image_size)
    leaf = images.clone().requires_grad_()

    def to_weights() -> None:
        ours(images).amax(dim=1).sum().backward()
        ours.zero_grad(set_to_none=True)

    calls: dict[str, Callable[[], object]] = {
        BACKWARD: to_weights,
        TO_IMAGE: lambda: torch.autograd.grad(frozen(leaf).amax(dim=1).sum(), leaf),
        ATTRIBUTION: lambda: explain_batch(ours, images, method="attribution"),
        KEPT_ATTRIBUTION: lambda: attribution_of_kept_maps(peer, leaf),
    }
    return timed(calls, case, chosen)


def timed(calls: Variants, case: Case, chosen: argparse.Namespace) -> Timings:
    """The calls measured for as long as the case's size allows."""
    if case.image_size >= LARGE:
        seldom = dict.fromkeys(EXPENSIVE, 1)
        return measure(calls, rounds=chosen.large_rounds, warmup=min(chosen.warmup, 1), seldom=seldom)
    return measure(calls, rounds=chosen.rounds, warmup=chosen.warmup, min_seconds=chosen.min_seconds)


def sharpen(model: Classifier, factor: float = 8.0) -> Classifier:
    """Makes random weights attend to few tokens, as trained ones do: nearly even attention would hide mistakes."""
    with torch.no_grad():
        for attention in model.encoder.attentions():
            attention.qkv.weight.mul_(factor)
    return model


def agreement(variant: str, image_size: int) -> tuple[float, float, float]:
    """The largest relative difference of our map of one image from the textbook's in float64: of all our own work in
    fp32; of the walk alone, after a forward pass in float64; and the textbook map's greatest over least value."""
    ours = sharpen(classifier(variant, image_size))
    image = torch.randn(1, 3, image_size, image_size)
    single = explain_batch(ours, image, method="rollout").maps.flatten()
    ours, image = ours.double(), image.double()
    walked = explain_batch(ours, image, method="rollout").maps.flatten()  # walks are in fp32 always
    expected = rollout_of_kept_maps(timm_twin(ours, variant).double(), image)[0, 1:]
    differences = [((found - expected).abs() / expected).max().item() for found in (single, walked)]
    return differences[0], differences[1], (expected.max() / expected.min()).item()


def rollout_tables(found: dict[Case, Timings]) -> list[Table]:
    """Milliseconds, and ratios to the plain forward pass."""
    names = next(iter(found.values()))
    times = Table("ms a call, median (min..max)", ("", *names))
    costs = Table(
        "time in units of our plain forward, median of the rounds' ratios (min..max)",
        ("", *(name for name in names if name != FORWARD), "rollout / timm's forward", "textbook / rollout"),
    )
    for case, timings in found.items():
        times.rows.append((case, *(spread([1000 * s for s in seconds]) for seconds in timings.values())))
        plain = [ratio(timings, name, FORWARD) for name in names if name != FORWARD]
        costs.rows.append((case, *plain, ratio(timings, ROLLOUT, TIMM), ratio(timings, KEPT, ROLLOUT)))
    return [times, costs]


def memory_table(title: str, names: Sequence[str], cases: Sequence[Case], chosen: argparse.Namespace) -> Table:
    """Peaks of whole processes, one a variant; the ratios are to the first of them."""
    table = Table(
        f"{title}: peak memory of a process, MB",
        ("", "variant", "imports, model, image", "peak", "increment", f"peak / {names[0]}'s", "increment / its"),
    )
    for case in cases:
        found = {}
        for name in names:
            maps = maps_of_attribution(case, chosen.variant)
            if name == KEPT_ATTRIBUTION and maps > chosen.most_memory:
                table.rows.append((case, name, "", "not run", f"above {maps:,.0f}: its maps", "", ""))
                continue
            found[name] = memory = in_new_process(
                name, variant=chosen.variant, threads=chosen.threads, **case._asdict()
            )
            least = found[names[0]]
            ratios = memory.peak / least.peak, memory.increment / least.increment
            table.rows.append((case, name, memory.before, memory.peak, memory.increment, *ratios))
    return table


def maps_of_attribution(case: Case, variant: str) -> float:
    """MB of all maps of N x N and their gradients, float32."""
    shape = keywords_of(variant)
    maps = shape["depth"] * shape["num_heads"] * case.tokens**2 * case.batch
    return 2 * 4 * maps / 2**20


def attribution_tables(found: dict[Case, Timings]) -> list[Table]:
    """Milliseconds, and ratios to a forward and backward pass."""
    names = (BACKWARD, TO_IMAGE, ATTRIBUTION, KEPT_ATTRIBUTION)
    times = Table("attribution, ms a call, median (min..max)", ("", *names))
    costs = Table(
        "attribution's time, median of the rounds' ratios (min..max)",
        ("", f"/ {BACKWARD}", f"/ {TO_IMAGE}", f"{KEPT_ATTRIBUTION} / {ATTRIBUTION}"),
    )
    for case, timings in found.items():
        times.rows.append((case, *(spread([1000 * s for s in timings[name]]) for name in names)))
        plain = [ratio(timings, ATTRIBUTION, name) for name in (BACKWARD, TO_IMAGE)]
        costs.rows.append((case, *plain, ratio(timings, KEPT_ATTRIBUTION, ATTRIBUTION)))
    return [times, costs]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("saliency", __doc__ or "", rounds=9)
    parser.add_argument("--variant", default="small", choices=("tiny", "small", "base"), help="size (default small)")
    small, batch, middle, large = Case(224, 1), Case(224, 8), Case(512, 1), Case(1024, 1)
    defaults = {
        "--cases": [small, batch, large],
        "--memory": [large],
        "--attribution": [small, batch],
        "--attribution-memory": [middle],
    }
    for option, default in defaults.items():
        parser.add_argument(option, nargs="*", type=Case.parse, metavar="PIXELSxBATCH", default=default)
    parser.add_argument("--large-rounds", type=int, default=3, help=f"rounds from {LARGE} px on (default 3)")
    parser.add_argument(
        "--most-memory", type=float, default=12_000.0, metavar="MB", help="for the textbook's maps (default 12000)"
    )
    parser.add_argument("--min-seconds", type=float, default=0.2, help="least time of one measurement (default 0.2)")
    parser.add_argument("--agreement", type=int, default=224, help="pixels of the image whose maps are compared")
    parser.add_argument(
        "--malloc", choices=("kept", "default"), default="kept", help="freed memory: kept, as `vit` does (default)"
    )
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    if chosen.malloc == "kept":
        keep_freed_memory()
    compared = agreement(chosen.variant, chosen.agreement)
    settings = {
        "model": f"ViT-{chosen.variant}/16",
        "rounds": f"{chosen.rounds} ({chosen.large_rounds} from {LARGE} px on) after {chosen.warmup} dropped",
        "timm": timm.__version__,
        "malloc": chosen.malloc,
    }
    right = Table(
        f"our map against the textbook's in float64, one image of {chosen.agreement} px",
        ("largest relative difference", "of the walk alone", "greatest / least value of the map"),
        [compared],
    )
    tables = [right]
    if chosen.memory:  # first: nothing else runs yet that could fill the machine
        tables.append(memory_table("rollout", (FORWARD, ROLLOUT, KEPT, AS_IT_GOES), chosen.memory, chosen))
    if chosen.attribution_memory:
        names = (BACKWARD, ATTRIBUTION, KEPT_ATTRIBUTION)
        tables.append(memory_table("attribution", names, chosen.attribution_memory, chosen))
    if chosen.cases:
        tables += rollout_tables({case: time_rollout(case, chosen) for case in chosen.cases})
    if chosen.attribution:
        tables += attribution_tables({case: time_attribution(case, chosen) for case in chosen.attribution})
    report("saliency", arguments, machine, settings, tables, chosen.out)
    return tables


if __name__ == "__main__":
    main()
