"""Where words look: a captioner of bird scenes, its measures on unseen scenes, and the maps of its words against the
exact mask of the bird.

A captioner is trained by `vit train --config caption/birdscenes`, or given (`--model`). On scenes of the test split it
says a caption each; of the words that it said, those that name a species and those that name a background are
explained, as `vit explain` does and by plain attribution. The species' map should lie on the bird (pointing game, share
of its energy on the bird), the background's off it: less of its energy on the bird than the bird's share of the
picture's area. A background is named by a phrase ("over rippling water"), of which some words follow from those before
them: of the phrase that word counts which the image mattered to most, by the sum of its plain attribution; its last
word is told, too. Beside them stand a centred Gaussian and noise on the same scenes. What the words say may be right or
wrong; both count.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import cli
from benchmarks.harness import Table, begin, options, report
from datamodules.captioned_scenes import BirdSceneCaptions
from datamodules.captions import PHRASES
from datamodules.scene_plans import SPECIES
from datamodules.vocabulary import Vocabulary
from vit.checkpoints.captioner import load_captioner
from vit.models.captioner import Captioner
from vit.models.generation import GenerationOptions
from vit.saliency.baselines import centre_gaussian, random_map
from vit.saliency.captions import beyond_the_caption, explain_captions
from vit.saliency.intervals import bootstrap
from vit.saliency.localization import energy_inside, evaluate_maps
from vit.training.caption_evaluation import evaluate_captions


def train(run: Path, chosen: argparse.Namespace) -> Path:
    """Trains by the recipe; returns the model folder."""
    words = ["--config", "caption/birdscenes", "--model.pretrained", cli.DEMO_CHECKPOINT, "--seed", chosen.seed]
    if cli.main(["train", *map(str, words), "--run", str(run)]):
        raise SystemExit("The training failed.")
    return run / "model"


def scenes(model: Captioner, words: Vocabulary, chosen: argparse.Namespace) -> BirdSceneCaptions:
    """Scenes that the model has never seen."""
    prepared = model.preprocessing
    return BirdSceneCaptions(
        "demo", vocabulary=words, image_size=prepared.image_size, mean=prepared.mean, std=prepared.std,
        val_scenes=chosen.scenes, num_workers=1, seed=chosen.seed,
    )  # fmt: skip


def localise(
    model: Captioner, words: Vocabulary, data: BirdSceneCaptions, start_block: int
) -> dict[str, dict[str, list[float]]]:
    """Of each kind of map, its scores: a list over the scenes in which it is."""
    found: dict[str, dict[str, list[float]]] = {}
    for batch in data.dataloader("test"):
        plain = explain_captions(model, batch["image"], start_block=start_block)
        drawn = beyond_the_caption(plain.maps, plain.mask)
        grid = drawn.shape[2:]
        for n, index in enumerate(batch["index"].tolist()):
            said = words.words(plain.ids[n][plain.mask[n]].tolist())
            chosen = {}
            for kind, place in places(said, plain.maps[n].sum(dim=(1, 2))).items():
                chosen |= {kind: drawn[n, place], f"{kind}, plain": plain.maps[n, place]}
            chosen |= {"centre": centre_gaussian(*grid), "random": random_map(*grid, seed=index)}
            for kind, saliency in chosen.items():
                for name, value in scores(saliency, batch["mask"][n]).items():
                    found.setdefault(kind, {}).setdefault(name, []).append(value)
    return found


def places(said: list[str], mattered: torch.Tensor) -> dict[str, int]:
    """Where in a caption the species and the background are named, as far as they are."""
    found = {}
    named = [place for place, word in enumerate(said) if word in SPECIES]
    if named:
        found["species"] = named[0]
    phrases = [phrase.split() for phrases in PHRASES.values() for phrase in phrases]
    said_last = [len(phrase) for phrase in phrases if said[-len(phrase) :] == phrase]
    if said_last:
        first, last = len(said) - max(said_last), len(said) - 1
        found |= {"background": first + int(mattered[first : last + 1].argmax()), "background's last word": last}
    return found


def scores(saliency: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Of one map, and how the bird's share of its energy compares with its share of the area."""
    measured = {name: float(value) for name, value in evaluate_maps(saliency[None], mask[None]).items()}
    area = float(energy_inside(torch.ones(1, *mask.shape), mask[None]))
    return measured | {"off the bird": float(measured["energy_inside"] < area), "area": area}


def tables(metrics: dict[str, float], found: dict[str, dict[str, list[float]]], minutes: float | None) -> list[Table]:
    """The measures of the captions, and of the maps."""
    captions = Table("captions of unseen scenes", ("measure", "value"))
    names = ("loss", "perplexity", "exact_match", "words_right", "bleu", "cider", "distinct_captions", "images")
    captions.rows += [(name, f"{metrics[name]:.4g}") for name in names if metrics[name] is not None]
    if minutes is not None:
        captions.rows.append(("training, minutes of the clock", f"{minutes:.1f}"))
    columns = ("pointing_game", "energy_inside", "off the bird", "area")
    maps = Table("maps of words, mean (95% interval)", ("map of", "maps", *columns))
    for kind, measured in found.items():
        cells = []
        for name in columns:
            interval = bootstrap(np.array(measured[name])[:, None])[0].plain
            cells.append(f"{interval.mean:.3f} ({interval.low:.3f}..{interval.high:.3f})")
        maps.rows.append((kind, str(len(measured["area"])), *cells))
    return [captions, maps]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("captions", __doc__ or "", rounds=1, warmup=0, threads=1)
    parser.add_argument("--model", default="", help="model folder of a captioner; default: one is trained")
    parser.add_argument("--scenes", type=int, default=512, help="scenes that are captioned (default 512)")
    parser.add_argument("--start_block", type=int, default=0, help="of the encoder, for the maps (default 0)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        folder = Path(chosen.model) if chosen.model else train(Path(place) / "run", chosen)
        minutes = None if chosen.model else (time.monotonic() - began) / 60
        model = load_captioner(folder).eval()
    words = Vocabulary.from_json(model.tokenizer)
    data = scenes(model, words, chosen)
    greedy = GenerationOptions(max_tokens=model.decoder.max_tokens)
    spaced = evaluate_captions(
        model, data.dataloader("test"), data.names("test"), lambda ids: " ".join(words.words(ids)), greedy,
        device=torch.device("cpu"),
    )  # fmt: skip
    found = localise(model, words, data, chosen.start_block)
    settings = {
        "scored": f"{chosen.scenes} scenes of the test split, greedy captions",
        "vocabulary": f"{len(words) - 4} words",
        "maps": f"attribution through the encoder from block {chosen.start_block} on",
        "intervals": "95%, bootstrap",
    }
    done = tables(spaced.metrics(), found, minutes)
    report("captions", arguments, machine, settings, done, chosen.out)
    return done


if __name__ == "__main__":
    main()
