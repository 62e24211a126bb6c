"""An export of maps: what must be known before it starts (methods, targets, names), and the export itself."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, claim_folder, is_first_process, nearest, none_read, remove_torn
from vit.options import Method, RolloutOptions
from vit.terminal import progress, say, tell_skipped
from wiring.data import image_files
from wiring.models import prepared_for

if TYPE_CHECKING:
    import torch

    from datamodules.image_files import ImageFile
    from vit.models.classifier import Classifier
    from vit.saliency.export import ExportOptions, Photograph
    from vit.saliency.targets import Target

LONGEST_NAME = 255  # bytes that most file systems allow
LONGEST_END = ".top10000.full.map.png"  # what an export may add to a stem; `atomic_write` adds less


def refuse_others(verb: Callable[..., None], given: Mapping[str, Any], taken: set[str], what: str) -> None:
    """Raises UserError for options that were given to a verb, but have no effect on what it is going to do.

    Args:
        given: the arguments of the verb, by name.
        taken: the names of those that have an effect.
        what: what the verb works on, such as "a captioner".
    """
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(verb).parameters.items()}
    others = [f"--{name}" for name, value in given.items() if name not in taken and value != defaults[name]]
    if others:
        options = ", ".join(f"--{name}" for name in defaults if name in taken - {"model", "images", "task"})
        have = "has" if len(others) == 1 else "have"
        raise UserError(f"{', '.join(others)} {have} no effect with {what}.\nThese have: {options}.")


def check_serves(method: str, model: Classifier, source: str, hint: str = "--method default") -> None:
    """Raises UserError when the method can't explain the model; the hint is an option that would work."""
    from vit.saliency import methods

    try:
        methods.check_serves(method, model)
    except ValueError as error:
        raise UserError(f"{source}: {error}.\nGive {hint}, for example.") from None


def check_method(method: Method, model: Classifier, source: str, start_block: int, rollout: RolloutOptions) -> None:
    """Raises UserError when the method can't explain the model, or the given settings have no effect on it."""
    check_serves(method, model, source)
    check_settings([method], model, start_block, rollout, option="--method")


def check_settings(
    methods: Sequence[str], model: Classifier, start_block: int, rollout: RolloutOptions, *, option: str
) -> None:
    """Raises UserError when the given settings have no effect on any of the methods, or there is no such block.

    Args:
        option: the option that names the methods.
    """
    from vit.saliency.methods import METHODS, options_of

    given = f"{option} {','.join(methods)}"
    if rollout != RolloutOptions() and "rollout" not in methods:
        raise UserError(f"The --rollout.* options have no effect with {given}; they apply to rollout.")
    check_block(start_block, len(model.encoder.blocks))
    takes = [name for name in METHODS if "start_block" in options_of(name)]
    if start_block and not set(takes).intersection(methods):
        raise UserError(f"--start_block has no effect with {given}; it applies to {', '.join(takes)}.")


def check_block(start_block: int, blocks: int) -> None:
    """Raises UserError when `--start_block` is not one of the model's blocks."""
    from vit.saliency.walk import check_start_block

    try:
        check_start_block(start_block, blocks)
    except ValueError as error:
        raise UserError(f"--{error}.") from None


def settings_of(method: str, start_block: int, rollout: RolloutOptions) -> dict[str, Any]:
    """Those of the settings that a method takes, as keywords of `vit.explain`."""
    from vit.saliency.methods import options_of

    starts = {"start_block": start_block} if "start_block" in options_of(method) else {}
    return starts | (asdict(rollout) if method == "rollout" else {})


def chosen_target(text: str, method: Method, model: Classifier) -> Target:
    """The target that `--target` names.

    Raises:
        UserError: for a target that the model does not have, or a target other than "predicted" for a method whose
            maps don't depend on a class.
    """
    from vit.saliency.methods import METHODS
    from vit.saliency.targets import Target, parse_target

    if METHODS[method].needs_class:
        return parse_target(text, model.labels, model.num_classes)
    if text == "predicted":
        return Target(topk=1)
    knowing = [name for name, found in METHODS.items() if found.needs_class]
    raise UserError(
        f"--target is {text!r}, but the maps of --method {method} are the same for all classes.\n"
        f"Methods that explain a class: {', '.join(knowing)}."
    )


def export_names(files: list[ImageFile], model: Classifier) -> list[Photograph]:
    """The photographs of an export: their names, where their maps go, and their true classes where known."""
    from datamodules.reading import printable
    from vit.saliency.export import Photograph

    known = set(model.labels)
    return [
        Photograph(
            printable(file.relative),
            stem,
            truth=file.path.parent.name if file.path.parent.name in known else "",
            version=_version(file.path),
        )
        for file, stem in zip(files, output_stems(files), strict=True)
    ]


def _version(path: Path) -> str:
    """What changes with the content of a file, without reading it: its size and time; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def output_stems(files: list[ImageFile]) -> list[Path]:
    """The stems of the photographs' maps. A photograph keeps its suffix if its stem could be confused with the files of
    another photograph or of the export itself: contact_sheet.png, NAME.full.npy, NAME.map.png, NAME.top1.npy. A stem
    that leaves no room for these endings is shortened."""
    from datamodules.image_files import unique_stems

    own = re.compile(r"contact_sheet|.*\.(full|map|top[0-9]+)", re.DOTALL)
    stems = [file.relative if own.fullmatch(str(file.output_stem)) else file.output_stem for file in files]
    return unique_stems(
        [_with_room(stem, file) for stem, file in zip(stems, files, strict=True)],
        [_with_room(file.relative, file) for file in files],
    )


def _with_room(stem: Path, file: ImageFile) -> Path:
    """The stem; if its name plus an ending would be longer than a file name may be, the name is cut between two
    characters, and a digest of the photograph's path keeps it unique."""
    room = LONGEST_NAME - len(LONGEST_END)
    name = stem.name
    if len(os.fsencode(name)) <= room:
        return stem
    digest = hashlib.sha1(os.fsencode(file.relative), usedforsecurity=False).hexdigest()[:8]
    while len(os.fsencode(name)) > room - len("~") - len(digest):
        name = name[:-1]
    return stem.with_name(f"{name}~{digest}")


def refuse_images_within(out: Path, files: list[ImageFile]) -> None:
    """Raises UserError when photographs are in the output folder: maps could overwrite them, or be explained next."""
    if not out.is_dir():
        return
    home = out.resolve()
    folders = {folder: folder.resolve().is_relative_to(home) for folder in {file.path.parent for file in files}}
    within = [file for file in files if folders[file.path.parent]]
    if within:
        raise UserError(
            f"The output folder {out} holds {len(within)} of the images to explain, such as {within[0].relative}.\n"
            "Give another output folder, or name the images without those in it."
        )


def remove_summaries(folder: Path) -> None:
    """Removes the summaries of an earlier export, so that they are never taken for those of a new one."""
    for name in ("index.csv", "contact_sheet.png", "gallery.html"):
        (folder / name).unlink(missing_ok=True)


def _refuse_other_scores(table: str | None, scores: Mapping[str, float], photographs: list[Photograph]) -> None:
    """Raises UserError when the table of `--scores` contains none of the photographs."""
    if table is None or any(each.name in scores for each in photographs):
        return
    name = photographs[0].name
    raise UserError(
        f"{table} has no scores for any of the {len(photographs)} images, such as {name!r}{nearest(name, scores)}.\n"
        "Its column `image` must have the same paths: give the scores.csv of vit score on the same images."
    )


def export_photographs(
    network: Classifier,
    files: list[ImageFile],
    options: ExportOptions,
    *,
    out: Path,
    device: torch.device,
    crop: bool,
    scores: str | None,
    batch_size: int,
    num_workers: int,
    strict: bool,
    overwrite: bool,
    resume: bool,
) -> None:
    """Writes the maps of photographs (when resuming, of those that have none yet), and prints a summary.

    Raises:
        UserError: when a table of scores or targets does not fit the images, the images are in the output folder, the
            folder can't be written to or resumed, or no image can be read.
    """
    from vit import processes
    from vit.saliency.export import PHOTO_SIDE, export_maps, remaining
    from vit.saliency.export_log import ExportLog, fingerprint
    from vit.saliency.gallery import read_scores

    measured = ("score", {}) if scores is None else read_scores(Path(scores), options.method)
    photographs = export_names(files, network)
    _refuse_other_scores(scores, measured[1], photographs)
    if options.target.by_image:
        options.target.of([each.name for each in photographs])
    refuse_images_within(out, files)
    folder = claim_folder(out, overwrite=overwrite, resume=resume)
    if not resume and is_first_process():
        remove_summaries(folder)
    prepared = prepared_for(network, crop=crop)
    skipped: dict[str, str] = {}
    with ExportLog(folder, fingerprint(network), options.facts(prepared), resume=resume) as log:
        if resume and is_first_process():
            remove_torn(
                {folder} | {(folder / path).parent for each in photographs for path in options.files(each.stem)}
            )
        places = processes.first(remaining(photographs, folder, options, log))
        dataset = image_files([files[number] for number in places], prepared, photo_side=PHOTO_SIDE)
        batches = dataset.loader(batch_size, num_workers, strict=strict) if places else ()
        steps = export_maps(network, batches, photographs, folder, places=places, options=options, prepared=prepared,
                            device=device, log=log, scores=measured)  # fmt: skip
        for _, unread in progress(steps, "explaining", len(places) // processes.count(), lambda step: step[0]):
            skipped |= unread
    _tell(folder, len(files), processes.merged(skipped), len(places), options)


def _tell(folder: Path, files: int, skipped: dict[str, str], explained: int, options: ExportOptions) -> None:
    tell_skipped(skipped, folder)
    if len(skipped) == files:
        if is_first_process():
            remove_summaries(folder)  # of other versions of these photographs
        raise none_read(f"{files} images", skipped)
    if explained < files:
        say(f"{files - explained} of {files} images already had their maps")
    first_look = folder / ("gallery.html" if options.gallery else "contact_sheet.png")
    maps = (files - len(skipped)) * options.target.maps_an_image
    say(f"{maps} maps in {folder}; first look at {first_look}")
