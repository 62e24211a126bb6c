"""`vit check`: a data set is examined before anybody spends hours training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vit.foundation import UserError, check_range, claim_folder
from vit.terminal import print_lines, print_problems, progress, say
from wiring.data import check_reading, run_estimate
from wiring.models import build_model

if TYPE_CHECKING:
    from vit.options import Device, ModelOptions


def check_data(
    data: str,
    model: ModelOptions,
    *,
    out: str,
    fix_list: str | None,
    val_fraction: float,
    seed: int,
    batch_size: int,
    max_epochs: int,
    num_workers: int,
    device: Device,
    overwrite: bool,
) -> None:
    """Examines a folder or manifest, and writes report.html, problems.csv and, if asked, the list of good images.

    Raises:
        UserError: for data or options that can't be used, and when the data has errors.
    """
    from datamodules.doctor.diagnosis import diagnose
    from datamodules.doctor.listing import check_fix_list, list_data, write_fix_list
    from datamodules.doctor.report import write_problems, write_report
    from datamodules.doctor.scan import Scan, scan
    from datamodules.named import is_named
    from vit.inference import choose_device

    if is_named(data):
        raise UserError(
            f"vit check reads folders and manifests, and {data} is neither.\nGive a folder of photos or a manifest."
        )
    check_reading(batch_size, num_workers)
    check_range("max_epochs", max_epochs, 1)
    place = choose_device(device)
    root = Path(data).absolute()
    if fix_list is not None:
        check_fix_list(Path(fix_list), root, overwrite=overwrite)
    listing = list_data(root, val_fraction=val_fraction, seed=seed)
    network, _ = build_model(model, seed)
    folder = claim_folder(out, overwrite=overwrite)
    scanned = Scan.empty(len(listing))
    for _ in progress(scan(listing.paths, scanned, num_workers), "checking", len(listing), lambda count: count):
        pass
    found = diagnose(listing, scanned)
    lines = [*found.summary(), *run_estimate(found, network, batch_size, max_epochs, num_workers, place)]
    write_problems(found, folder / "problems.csv")
    write_report(found, folder / "report.html", lines)
    print_lines(lines)
    print_problems(found.table())
    if fix_list is not None:
        write_fix_list(Path(fix_list), listing, found.keep)
        say(f"{len(found.keep)} of {len(listing)} images are in {fix_list}")
    say(f"with pictures: {folder / 'report.html'}   full list: {folder / 'problems.csv'}")
    if found.errors:
        many = "1 error" if found.errors == 1 else f"{found.errors} errors"
        raise UserError(f"{many}: each stops training, loses images, or makes the measured accuracy misleading.")
