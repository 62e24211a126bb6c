"""The verbs evaluate and predict for a captioner."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from vit.foundation import UserError, claim_file, claim_folder, make_folder, none_read
from vit.options import DataOptions, DecodingOptions, Device, Precision
from vit.terminal import progress, say, tell_skipped
from wiring.captioning import caption_data, refuse_longer
from wiring.data import check_reading, image_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datamodules.vocabulary import Vocabulary
    from vit.models.captioner import Captioner
    from vit.models.generation import GenerationOptions


def evaluate_captioner(
    model: str,
    data: DataOptions,
    decoding: DecodingOptions,
    *,
    out: str,
    split: str,
    limit: int | None,
    seed: int,
    precision: Precision,
    device: Device,
    overwrite: bool,
) -> None:
    """`vit evaluate` for a captioner; see `cli.evaluate`.

    Raises:
        UserError: several processes, a model, data or decoding options that can't be used, captions longer than the
            model can write, or an output folder that can't be written to.
    """
    from vit import processes
    from vit.checkpoints.captioner import load_captioner
    from vit.inference import choose_device
    from vit.training.caption_evaluation import evaluate_captions, write_caption_evaluation

    processes.refuse_several("vit evaluate of a captioner")
    place = choose_device(device)
    network = load_captioner(model)
    vocabulary = vocabulary_of(network, model)
    options = generation(decoding, network)
    module = caption_data(data, network.preprocessing, vocabulary, seed=seed, limit=limit)
    names = module.names(split)
    refuse_longer(module.longest, network, data.root)
    folder = claim_folder(out, overwrite=overwrite)
    batches = progress(module.dataloader(split), "evaluating", len(names), lambda batch: len(batch["ids"]))
    found = evaluate_captions(network, batches, names, spaced(vocabulary), options, device=place, precision=precision,
                              seed=seed)  # fmt: skip
    metrics = write_caption_evaluation(found, folder)
    tell_skipped(found.skipped, folder)
    for name in ("loss", "perplexity", "exact_match", "words_right", "bleu", "cider"):
        told = "needs pycocoevalcap: pip install '.[captions]'" if metrics[name] is None else f"{metrics[name]:.4f}"
        print(f"{name:18} {told}")
    print(f"{'images':18} {metrics['images']}  ({metrics['skipped']} skipped)")
    say(f"written to {folder}: metrics.json, captions.csv")


def predict_captions(
    model: str,
    images: list[str],
    decoding: DecodingOptions,
    *,
    out: str,
    limit: int | None,
    batch_size: int,
    num_workers: int,
    precision: Precision,
    device: Device,
    strict: bool,
    overwrite: bool,
    seed: int,
) -> None:
    """`vit predict` for a captioner; see `cli.predict`.

    Raises:
        UserError: several processes, options or a model that can't be used, an output file that may not be written, or
            images of which none can be read.
    """
    from datamodules.image_files import list_images
    from datamodules.reading import printable
    from vit import processes
    from vit.checkpoints.captioner import load_captioner
    from vit.inference import choose_device
    from vit.training.caption_evaluation import caption_batches, write_captions

    processes.refuse_several("vit predict of a captioner")
    check_reading(batch_size, num_workers)
    place = choose_device(device)
    network = load_captioner(model)
    vocabulary, options = vocabulary_of(network, model), generation(decoding, network)
    path = claim_file(out, overwrite=overwrite)
    files = list_images(images, limit=limit)
    loader = image_files(files, network.preprocessing).loader(batch_size, num_workers, strict=strict)
    batches = progress(loader, "captioning", len(files), lambda batch: len(batch["index"]))
    found = caption_batches(network, batches, options, device=place, precision=precision, seed=seed)
    names = [printable(file.relative) for file in files]
    make_folder(path.parent)
    skipped = write_captions(found, names, vocabulary.decode, path)
    if len(skipped) == len(files):
        raise none_read(f"{len(files)} images", skipped)
    if skipped:  # otherwise an existing skipped.csv is about other images
        tell_skipped(skipped, path.parent)
    say(f"{len(files) - len(skipped)} images: {path}")


def vocabulary_of(network: Captioner, source: str) -> Vocabulary:
    """The vocabulary of a captioner.

    Raises:
        UserError: when its tokenizer is invalid, or not the one that its decoder was made for.
    """
    from datamodules.vocabulary import Vocabulary

    words = Vocabulary.from_json(network.tokenizer)
    ids = (words.start, words.end, words.pad)
    if len(words) != network.decoder.head.out_features or ids != (network.start, network.end, network.pad):
        raise UserError(f"The tokenizer.json of {source} does not match its decoder.\nCopy the model folder again.")
    return words


def spaced(vocabulary: Vocabulary) -> Callable[[Sequence[int]], str]:
    """Converts ids to words separated by spaces, as the text metrics take them."""
    return lambda ids: " ".join(vocabulary.words(ids))


def generation(decoding: DecodingOptions, network: Captioner) -> GenerationOptions:
    """The generation options of the command line, in the form that the model takes.

    Raises:
        UserError: when the sentences are longer than the model can write, or the options contradict each other.
    """
    from vit.models.generation import GenerationOptions

    longest = network.decoder.max_tokens
    if decoding.max_tokens > longest:
        raise UserError(f"--decoding.max_tokens is {decoding.max_tokens}; this model can write up to {longest}.")
    try:
        return GenerationOptions(**asdict(replace(decoding, max_tokens=decoding.max_tokens or longest)))
    except ValueError as error:
        raise UserError(f"The --decoding.* options contradict each other: {error}.") from None
