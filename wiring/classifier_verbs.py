"""`vit evaluate` and `vit predict` of a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit.foundation import check_range, claim_file, claim_folder, is_first_process, make_folder, none_read
from vit.terminal import print_classes, progress, say, tell_skipped
from wiring.data import check_reading, data_module, image_files
from wiring.models import load_for_photographs, prepared_for, require_head, require_kind

if TYPE_CHECKING:
    from vit.options import DataOptions, Device, Precision


def evaluate_classifier(
    model: str,
    data: DataOptions,
    *,
    out: str,
    split: str,
    limit: int | None,
    tta: str,
    seed: int,
    precision: Precision,
    device: Device,
    overwrite: bool,
) -> None:
    """Measures a classifier on a split, and writes what `vit evaluate` writes; processes share the images.

    Raises:
        UserError: for a model, data or options that can't be used.
    """
    from vit import processes
    from vit.inference import choose_device
    from vit.training.evaluation import evaluate, write_evaluation

    processes.join()
    place = choose_device(device)
    network = load_for_photographs(model)
    require_head(network, model)
    module = data_module(data, network, seed=seed, labels=network.labels, limit=limit)
    require_kind(network, module, model)
    names = module.names(split)
    folder = claim_folder(out, overwrite=overwrite)
    batches = progress(
        module.dataloader(split), "evaluating", len(names) // processes.count(), lambda batch: len(batch["target"])
    )
    found = evaluate(network, batches, names, device=place, precision=precision, tta=tta)
    if not is_first_process():
        return
    metrics, written = write_evaluation(found, folder)
    tell_skipped(found.skipped, folder)
    for name, value in metrics.items():
        if isinstance(value, float):
            print(f"{name:18} {value:.4f}")
    print(f"{'images':18} {metrics['images']}  ({metrics['skipped']} skipped)")
    print_classes(metrics["per_class"])
    say(f"written to {folder}: {', '.join(written)}")


def predict_labels(
    model: str,
    images: list[str],
    *,
    out: str,
    topk: int,
    limit: int | None,
    batch_size: int,
    num_workers: int,
    crop: bool,
    precision: Precision,
    device: Device,
    strict: bool,
    overwrite: bool,
) -> None:
    """Writes the likeliest labels of images to a CSV; processes share the images.

    Raises:
        UserError: for a model, images or options that can't be used, or when no image can be read.
    """
    from datamodules.image_files import list_images
    from datamodules.reading import printable
    from vit import processes
    from vit.inference import choose_device, predict_batches, write_predictions

    check_reading(batch_size, num_workers)
    check_range("topk", topk, 1)
    processes.join()
    place = choose_device(device)
    network = load_for_photographs(model)
    require_head(network, model)
    path = claim_file(out, overwrite=overwrite)
    files = list_images(images, limit=limit)
    dataset = image_files(files, prepared_for(network, crop=True) if crop else network.preprocessing)
    batches = progress(
        dataset.loader(batch_size, num_workers, strict=strict),
        "predicting",
        len(files) // processes.count(),
        lambda batch: len(batch["index"]),
    )
    found = predict_batches(network, batches, device=place, precision=precision)
    names = [printable(file.relative) for file in files]
    make_folder(path.parent)
    skipped = write_predictions(found, names, network.labels, path, topk=topk)
    if len(skipped) == len(files):
        raise none_read(f"{len(files)} images", skipped)
    if skipped:  # otherwise an existing skipped.csv is about other images
        tell_skipped(skipped, path.parent)
    say(f"{len(files) - len(skipped)} images: {path}")
