"""The model folder of a captioner: what `vit train --task caption` writes.

model.safetensors   the weights, encoder.* and decoder.*
tokenizer.json      the vocabulary, as the tokenizers library reads it
config.json         under "vitscope": both architectures, the preprocessing, and the sha256 of all three
README.md           the model card
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vit.checkpoints.card import Training, captioner_card
from vit.checkpoints.content import read_json
from vit.checkpoints.folder import CARD, CONFIG, OURS, WEIGHTS, digest_of, refuse_damaged, sha256, with_tuples
from vit.checkpoints.read import read_tensors, refuse_link
from vit.checkpoints.strict import match, refuse_nonfinite
from vit.checkpoints.targets.target import write_json, write_safetensors
from vit.foundation import UserError, atomic_write
from vit.models.captioner import Captioner
from vit.models.classifier import Preprocessing
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder

TOKENIZER = "tokenizer.json"
KIND = "captioner"  # the value of "kind" in the config


def write_captioner(model: Captioner, folder: Path, training: Training | None = None) -> None:
    """Writes the model folder; the config, with the sha256 of the other files, is written last, as for a classifier.

    Args:
        model: the captioner.
        folder: the folder, created if it does not exist.
        training: what the model card says about the data and the run.
    """
    digest = write_safetensors(model.state_dict(), folder / WEIGHTS)
    with atomic_write(folder / TOKENIZER) as temporary:
        temporary.write_text(model.tokenizer, encoding="utf-8")
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(captioner_card(model, {WEIGHTS: digest}, training), encoding="utf-8")
    ours = {
        "kind": KIND,
        "architecture": model.encoder.architecture,
        "decoder": model.decoder.architecture,
        "context_positions": model.context_positions,
        "tokens": {"start": model.start, "end": model.end, "pad": model.pad},
        "preprocessing": asdict(model.preprocessing),
        "weights_sha256": digest,
        "tokenizer_sha256": sha256(folder / TOKENIZER),
    }
    write_json({OURS: {**ours, "config_sha256": digest_of({OURS: ours})}}, folder / CONFIG)


def is_captioner(source: object) -> bool:
    """Whether a source of weights is the model folder of a captioner; never raises."""
    if not isinstance(source, str | Path) or not (Path(source) / CONFIG).is_file():
        return False
    try:
        ours = read_json(Path(source) / CONFIG).get(OURS)
    except UserError:  # reading it as something else later says what is wrong
        return False
    return isinstance(ours, dict) and ours.get("kind") == KIND


def load_captioner(source: str | Path) -> Captioner:
    """The captioner of a model folder.

    Raises:
        UserError: when it is not the folder of a captioner, was changed since it was written, or is damaged.
    """
    folder = Path(source)
    if not is_captioner(folder):
        raise UserError(
            f"{source} is not the model folder of a captioner.\nGive the `model` folder of a run with --task caption."
        )
    config = read_json(folder / CONFIG)
    ours = config[OURS]
    unsigned = {name: value for name, value in ours.items() if name != "config_sha256"}
    if digest_of({**config, OURS: unsigned}) != ours.get("config_sha256"):
        raise UserError(
            f"{folder / CONFIG} was changed since it was written: its sha256 differs.\nCopy the folder again."
        )
    for name, key in ((WEIGHTS, "weights_sha256"), (TOKENIZER, "tokenizer_sha256")):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is incomplete: {name} is missing.\nCopy the model folder again.")
        refuse_link(folder / name)
        refuse_damaged(folder / name, ours[key], sha256(folder / name))
    model = _build(ours, (folder / TOKENIZER).read_text(encoding="utf-8"), str(folder / CONFIG))
    _fill(model, dict(read_tensors(folder / WEIGHTS)), folder)
    return model


def captioner_facts(source: str | Path) -> list[tuple[str, str]]:
    """What `vit info` prints about a captioner; raises UserError as `load_captioner` does."""
    model = load_captioner(source)
    prepared, parameters = model.preprocessing, sum(weight.numel() for weight in model.parameters())
    return [
        ("checkpoint", str(source)),
        ("kind", "a captioner: an encoder, and a decoder that writes sentences"),
        ("sha256", sha256(Path(source) / WEIGHTS)),
        *((f"encoder: {name}", str(value)) for name, value in model.encoder.architecture.items()),
        *((f"decoder: {name}", str(value)) for name, value in model.decoder.architecture.items()),
        ("parameters", f"{parameters:,}"),
        ("preprocessing", f"{prepared.image_size}, {prepared.resize_mode}, {prepared.interpolation}"),
        ("mean, std", f"{prepared.mean}, {prepared.std}"),
    ]


def _build(ours: Mapping[str, Any], tokenizer: str, name: str) -> Captioner:
    """The model that a config describes, on the meta device, which saves time and memory for random weights."""
    try:
        with torch.device("meta"):
            return Captioner(
                image_encoder(**with_tuples(ours["architecture"])),
                Decoder(**ours["decoder"]),
                **ours["tokens"],
                context_positions=ours.get("context_positions", False),  # older folders have none
                tokenizer=tokenizer,
                preprocessing=Preprocessing(**with_tuples(ours["preprocessing"])),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} does not describe a captioner: {error!s:.200}") from None


def _fill(model: Captioner, state: dict[str, torch.Tensor], folder: Path) -> None:
    match(model, state).require(folder)
    refuse_nonfinite(state, folder)
    model.load_state_dict({name: value.float().clone() for name, value in state.items()}, assign=True)
    model.requires_grad_(True)
