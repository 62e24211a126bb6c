"""The shortcut test: do the maps, and `vit score`, find out which of two models reads the background?

Two models are fine-tuned alike from the shipped checkpoint, on the same generated birds: for one the background says
nothing of the species, for the other each species has a background of its own (`--data.confound 1`; two species
share each of the four backgrounds). Both are then scored on the same unseen scenes, whose backgrounds are free.

What is compared are paired means over these scenes, with 95% intervals of the bootstrap: the share of a map's energy
inside the bird, for each method; and what `vit score` says of each predicted class.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import cli
from benchmarks.harness import Table, begin, options, report
from datamodules.birdscenes import BirdScenes
from vit.checkpoints.load import load
from vit.saliency.intervals import Interval, bootstrap
from vit.saliency.score import Scorer, Scores
from vit.saliency.score_report import Summary, class_lines, summarise

FREE, TIED = "free backgrounds", "tied backgrounds"
CONFOUNDS = {FREE: 0.0, TIED: 1.0}


def train(folder: Path, confound: float, chosen: argparse.Namespace) -> Path:
    """Fine-tunes the shipped checkpoint on scenes; returns the model folder."""
    words = ["--config", "demo/finetune", "--model.pretrained", cli.DEMO_CHECKPOINT, "--data.confound", confound]
    words += ["--data.train_scenes", chosen.train_scenes, "--data.val_scenes", 128, "--data.num_workers", 1]
    words += ["--trainer.max_epochs", chosen.epochs, "--seed", chosen.seed, "--run", folder]
    if cli.main(["train", *map(str, words)]):
        raise SystemExit("The training failed.")
    return folder / "model"


def score(model: Path, chosen: argparse.Namespace) -> Scores:
    """The model on unseen scenes whose backgrounds say nothing."""
    network = load(model)
    prepared = network.preprocessing
    scenes = BirdScenes(
        "demo", image_size=prepared.image_size, mean=prepared.mean, std=prepared.std, labels=network.labels,
        val_scenes=chosen.scenes, num_workers=1, seed=chosen.seed,
    )  # fmt: skip
    scorer = Scorer(network, chosen.methods.split(","), device=torch.device("cpu"))
    for batch in scenes.dataloader("test"):
        scorer.add(batch)
    return scorer.scores()


def tables(found: dict[str, Scores], summaries: dict[str, Summary]) -> list[Table]:
    """Energy inside side by side with the difference, what the model reads, and the words for each class."""
    free, tied = found[FREE], found[TIED]
    energy = Table("energy inside the bird, mean (95% interval)", ("", FREE, TIED, "difference"))
    for method in free.methods:
        pair = [summaries[name].estimates["all"][method]["energy_inside"].plain for name in (FREE, TIED)]
        lost = tied.values[method]["energy_inside"] - free.values[method]["energy_inside"]
        energy.rows.append((method, *map(shown, pair), shown(bootstrap(lost[:, None])[0].plain)))
    reads = Table("what the model reads", ("", FREE, TIED))
    reads.rows.append(("top-1", *(f"{found[name].correct.mean():.3f}" for name in (FREE, TIED))))
    shares = [summaries[name].classes["all"].background_share.plain for name in (FREE, TIED)]
    reads.rows.append(("share of the background", *map(shown, shares)))
    counts = [sum(each.verdict.reads_background for each in classes(summaries[name])) for name in (FREE, TIED)]
    reads.rows.append(("classes said to read or lean on it", *map(str, counts)))
    words = [Table(f"in words, {name}", ("",), [(line,) for line in class_lines(summaries[name])]) for name in found]
    return [energy, reads, *words]


def classes(summary: Summary) -> list:
    """The summaries of the single classes."""
    return [found for label, found in summary.classes.items() if label != "all"]


def shown(interval: Interval) -> str:
    """A mean with its bounds."""
    return f"{interval.mean:.3f} ({interval.low:.3f}..{interval.high:.3f})"


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("shortcut", __doc__ or "", rounds=1, warmup=0, threads=1)
    parser.add_argument("--train_scenes", type=int, default=1536, help="scenes an epoch (default 1536)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each training (default 5)")
    parser.add_argument("--scenes", type=int, default=512, help="scenes that are scored (default 512)")
    parser.add_argument("--methods", default="rollout,attribution", help="methods (default rollout,attribution)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    with tempfile.TemporaryDirectory() as place:
        models = {name: train(Path(place) / name.split()[0], tied, chosen) for name, tied in CONFOUNDS.items()}
        found = {name: score(model, chosen) for name, model in models.items()}
    summaries = {name: summarise(scores, seed=chosen.seed) for name, scores in found.items()}
    settings = {
        "training": f"{chosen.epochs} epochs of {chosen.train_scenes} scenes, seed {chosen.seed}",
        "scored": f"{chosen.scenes} scenes of the test split, backgrounds free",
        "intervals": "95%, bootstrap",
    }
    done = tables(found, summaries)
    report("shortcut", arguments, machine, settings, done, chosen.out)
    return done


if __name__ == "__main__":
    main()
