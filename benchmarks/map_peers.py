"""Images/s of our maps beside those of other tools on the same weights, one image a call, fp32:

    rollout           our explain_batch
    textbook          rollout by hooks on timm's model, every head's N x N map kept, as in vit-explain without its slips
    torchxai          AttentionRollout of torchxai-explain, heads meaned and nothing discarded
    grad_cam          our explain_batch
    pytorch-grad-cam  its GradCAM at `blocks[-1].norm1` of timm's model, the layer that ours reads

torchxai's own default discards 90% of each map by torch.quantile, which refuses more than 16.7 million entries: it
can't explain 1024 px with patches of 16.

The table of agreement has the largest difference of each peer's map from ours, both enlarged to the image and stretched
to 0..1, as the tools give them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Table, begin, images_per_second, measure, options, ratio, report
from benchmarks.ours import classifier
from benchmarks.peers import timm_twin
from benchmarks.textbook import rollout_of_kept_maps
from vit.foundation import keep_freed_memory
from vit.saliency.explain import explain_batch

ROLLOUT, TEXTBOOK, TORCHXAI = "rollout", "textbook", "torchxai"
GRAD_CAM, PYTORCH_GRAD_CAM = "grad_cam", "pytorch-grad-cam"
PEERS = {TEXTBOOK: ROLLOUT, TORCHXAI: ROLLOUT, PYTORCH_GRAD_CAM: GRAD_CAM}  # peer -> ours


def variants(size: str, image: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Calls that give a map (img_h, img_w), or of patches."""
    from pytorch_grad_cam import GradCAM
    from torchxai.methods.attention_rollout import AttentionRollout

    ours = classifier(size, image.shape[-1])
    twins = [timm_twin(ours, size) for _ in PEERS]  # one each: some leave hooks behind
    side = ours.encoder.grid[0]
    grad_cam = GradCAM(
        twins[0],
        [twins[0].blocks[-1].norm1],
        reshape_transform=lambda tokens: tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2),
    )
    torchxai = AttentionRollout(twins[1], head_fusion="mean", discard_ratio=0.0)
    return {
        ROLLOUT: lambda: explain_batch(ours, image, method="rollout").maps[0],
        TEXTBOOK: lambda: rollout_of_kept_maps(twins[2], image)[0, 1:].view(side, side),
        TORCHXAI: lambda: torch.from_numpy(torchxai(image)),
        GRAD_CAM: lambda: explain_batch(ours, image, method="grad_cam").maps[0],
        PYTORCH_GRAD_CAM: lambda: torch.from_numpy(np.asarray(grad_cam(image, targets=None))[0]),
    }


def stretched(found: Tensor, image: Tensor) -> Tensor:
    """(img_h, img_w) from 0 to 1."""
    full = F.interpolate(found[None, None].double(), image.shape[-2:], mode="bilinear")[0, 0]
    return (full - full.min()) / (full.max() - full.min())


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("map_peers", __doc__ or "", rounds=4, warmup=1)
    parser.add_argument("--variant", default="small", choices=("tiny", "small", "base"), help="size (default small)")
    parser.add_argument("--image-size", type=int, default=1024, help="pixels (default 1024)")
    parser.add_argument("--peer-rounds", type=int, default=2, help="rounds that the slow peers run in (default 2)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    keep_freed_memory()  # as `vit` does
    image = torch.randn(1, 3, chosen.image_size, chosen.image_size)
    found: dict[str, Tensor] = {}

    def keeping(name: str, call: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: found.update({name: call()})

    calls = {name: keeping(name, call) for name, call in variants(chosen.variant, image).items()}
    seldom = dict.fromkeys(PEERS, chosen.peer_rounds)
    timings = measure(calls, rounds=chosen.rounds, warmup=chosen.warmup, seldom=seldom)
    rates = Table("images/s, median (min..max)", tuple(calls))
    rates.rows.append(tuple(images_per_second(timings, name, 1) for name in calls))
    names = tuple(f"{ours} / {peer}" for peer, ours in PEERS.items())
    speeds = Table("our images/s over theirs, median of the rounds' ratios (min..max)", names)
    speeds.rows.append(tuple(ratio(timings, peer, ours) for peer, ours in PEERS.items()))
    same = Table("largest difference of the maps, both from 0 to 1", names)
    maps = {name: stretched(each, image) for name, each in found.items()}
    same.rows.append(tuple(float((maps[peer] - maps[ours]).abs().max()) for peer, ours in PEERS.items()))
    report("map_peers", arguments, machine, settings(chosen), [rates, speeds, same], chosen.out)
    return [rates, speeds, same]


def settings(chosen: argparse.Namespace) -> dict[str, object]:
    """What was measured, by name."""
    from importlib.metadata import version

    return {
        "model": f"ViT-{chosen.variant}/16 at {chosen.image_size} px",
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped, {chosen.peer_rounds} of them with peers",
        "timm": timm.__version__,
        "torchxai-explain": version("torchxai-explain"),
        "grad-cam": version("grad-cam"),
    }


if __name__ == "__main__":
    main()
