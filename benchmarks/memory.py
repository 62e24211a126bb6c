"""Peak memory of one call, alone in a process: `python -m benchmarks.memory rollout --image-size 1024`.

Prints two numbers of megabytes as JSON: the process's greatest resident memory before the call (imports, model and
image), and after it. A process imports only what its variant needs.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

FORWARD, ROLLOUT, KEPT, AS_IT_GOES = "forward", "rollout", "textbook", "textbook, lean"
BACKWARD, ATTRIBUTION, KEPT_ATTRIBUTION = "forward + backward", "attribution", "textbook attribution"
NAMES = (FORWARD, ROLLOUT, KEPT, AS_IT_GOES, BACKWARD, ATTRIBUTION, KEPT_ATTRIBUTION)


class Memory(NamedTuple):
    """Greatest resident memory of a process in MB, before the call and after it."""

    before: float
    peak: float

    @property
    def increment(self) -> float:
        """What the call added."""
        return self.peak - self.before


def peak_memory() -> float:
    """The greatest resident memory of this process so far, in MB.

    Linux counts into `ru_maxrss` what the parent process held when it started this one, however little this one
    needs; /proc has the process's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_new_process(name: str, *, variant: str, image_size: int, batch: int, threads: int) -> Memory:
    """The memory of one call of the named variant, measured in a process of its own."""
    sizes = {"variant": variant, "image-size": image_size, "batch": batch, "threads": threads}
    words = [word for option, value in sizes.items() for word in (f"--{option}", str(value))]
    command = [sys.executable, "-m", "benchmarks.memory", name, *words]
    root = Path(__file__).resolve().parents[1]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return Memory(**json.loads(printed))


def prepared(name: str, variant: str, image_size: int, batch: int) -> Callable[[], object]:
    """The call of a variant, its model and images made."""
    images = torch.randn(batch, 3, image_size, image_size)
    if name in (FORWARD, ROLLOUT, BACKWARD, ATTRIBUTION):
        from benchmarks.ours import classifier
        from vit.saliency.explain import explain_batch

        ours = classifier(variant, image_size)
        return {
            FORWARD: torch.inference_mode()(lambda: ours(images)),
            ROLLOUT: lambda: explain_batch(ours, images, method="rollout"),
            BACKWARD: lambda: ours(images).amax(dim=1).sum().backward(),
            ATTRIBUTION: lambda: explain_batch(ours, images, method="attribution"),
        }[name]
    import timm

    from benchmarks.textbook import attribution_of_kept_maps, rollout_as_it_goes, rollout_of_kept_maps

    peer = timm.create_model(f"vit_{variant}_patch16_224", img_size=image_size).eval()
    if name == KEPT_ATTRIBUTION:
        peer.requires_grad_(False)
        images.requires_grad_()
    methods = {KEPT: rollout_of_kept_maps, AS_IT_GOES: rollout_as_it_goes, KEPT_ATTRIBUTION: attribution_of_kept_maps}
    return lambda: methods[name](peer, images)


def main() -> None:
    """Measures one variant, and prints what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--variant", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    call = prepared(chosen.name, chosen.variant, chosen.image_size, chosen.batch)
    before = peak_memory()
    call()
    print(json.dumps(Memory(before, peak_memory())._asdict()))


if __name__ == "__main__":
    main()
