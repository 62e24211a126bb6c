"""Faults of the machine, made for real in a process of their own: a full disk, a read-only folder, no shared memory, no
memory, a kill in the midst of saving.

The small disks are mounts of a private namespace, which only root may make; elsewhere those tests say so and skip.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.checkpoints import CheckpointWriter, is_whole
from vit.training.resume import last_checkpoint
from vit.training.stopping import StopRequest

ROOT = Path(__file__).resolve().parent.parent
VIT = f"{sys.executable} {ROOT / 'cli.py'}"


def can_mount() -> bool:
    """Whether this process may have mounts of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


own_mounts = pytest.mark.skipif(not can_mount(), reason="private mounts (unshare -m) are not allowed here")


def shell(script: str, *, mounts: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script, in a mount namespace of its own."""
    space = ["unshare", "-m"] if mounts else []
    return subprocess.run(
        [*space, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def complaint(ended: subprocess.CompletedProcess[str], command: str) -> str:
    """What a failed command said, after checking that it is short and no traceback."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    start = ended.stderr.index(f"vit {command}: ")
    assert len(ended.stderr[start:].splitlines()) <= 5
    return ended.stderr[start:]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photos, of 64 pixels."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label, brightness in (("bright", 170), ("dark", 50)):
        (root / label).mkdir()
        for number in range(8):
            pixels = random.integers(brightness - 40, brightness + 40, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of two classes."""
    torch.manual_seed(0)
    encoder = image_encoder(image_size=(64, 64), patch_size=(8, 8), embed_dim=22, depth=2, num_heads=2)
    folder = tmp_path_factory.mktemp("models") / "model"
    write_folder(Classifier(encoder, 2, labels=("bright", "dark")), folder)
    return folder


@own_mounts
def test_a_disk_that_is_full_leaves_the_checkpoint_before(photos: Path, tmp_path: Path) -> None:
    """Room for one checkpoint and a half; temporary files would have room elsewhere, and must not go there."""
    ended = shell(
        f"mkdir {tmp_path}/disk && mount -t tmpfs -o size=36m disk {tmp_path}/disk;"
        f"{VIT} train --data.root {photos} --data.batch_size 4 --data.num_workers 0 --model.variant pico"
        f" --model.patch_size 16 --model.image_size 32 --trainer.max_epochs 3 --trainer.checkpoint_minutes 0"
        f" --device cpu --run {tmp_path}/disk/run; code=$?; cp -r {tmp_path}/disk/run {tmp_path}/run; exit $code",
        TMPDIR="/dev/shm",
    )
    assert "space" in complaint(ended, "train")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path.name for path in files if path.name.startswith(".")]  # no half file, also not under another name
    assert torch.load(last_checkpoint(tmp_path / "run"), weights_only=True)["global_step"] >= 1
    if (tmp_path / "run" / "model").is_dir():
        load(tmp_path / "run" / "model")


def test_a_model_that_may_not_be_so_large_is_told(photos: Path, tmp_path: Path) -> None:
    """The writer of its weights is not Python's, and has an error of its own."""
    ended = shell(
        f"ulimit -f 300; {VIT} train --data.root {photos} --data.batch_size 4 --data.num_workers 0"
        f" --model.variant pico --model.patch_size 16 --model.image_size 32 --trainer.max_epochs 1"
        f" --device cpu --run {tmp_path}/run",
        mounts=False,
    )
    text = complaint(ended, "train")
    assert "the system refused" in text
    assert "model.safetensors: File too large" in text
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@own_mounts
@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("explain {model} {photos} --num_workers 0 --out {place}/maps", "maps"),
        ("predict {model} {photos} --num_workers 0 --out {place}/labels.csv", "labels.csv"),
    ],
)
def test_a_folder_that_can_only_be_read_is_told(
    photos: Path, model: Path, tmp_path: Path, command: str, out: str
) -> None:
    (tmp_path / "place").mkdir()
    place = tmp_path / "place"
    ended = shell(
        f"mount --bind {place} {place} && mount -o remount,ro,bind {place};"
        f"{VIT} {command.format(model=model, photos=photos, place=place)}"
    )
    text = complaint(ended, command.split()[0])
    assert out in text or "place" in text
    assert "ead-only" in text
    assert list(place.iterdir()) == []


@own_mounts
def test_maps_that_do_not_fit_on_the_disk_leave_no_torn_file(photos: Path, model: Path, tmp_path: Path) -> None:
    ended = shell(
        f"mkdir {tmp_path}/disk && mount -t tmpfs -o size=200k disk {tmp_path}/disk;"
        f"{VIT} explain {model} {photos} --num_workers 0 --out {tmp_path}/disk/maps;"
        f"code=$?; cp -r {tmp_path}/disk/maps {tmp_path}/maps; exit $code"
    )
    assert "space" in complaint(ended, "explain")
    for path in (tmp_path / "maps").rglob("*.npy"):
        assert np.load(path).shape == (8, 8)
    for path in (tmp_path / "maps").rglob("*.png"):
        Image.open(path).load()
    assert not list((tmp_path / "maps").rglob(".*"))


@own_mounts
def test_no_shared_memory_is_told(photos: Path, model: Path, tmp_path: Path) -> None:
    ended = shell(
        f"mount -t tmpfs -o size=64k shm /dev/shm;"
        f"{VIT} predict {model} {photos} --num_workers 2 --batch_size 8 --out {tmp_path}/labels.csv"
    )
    text = complaint(ended, "predict")
    assert "shared memory" in text
    assert "num_workers" in text
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
import cli, torch, vit.saliency.export, vit.inference, datamodules.image_files, vit.checkpoints.load
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the memory of a process can't be limited here")
def test_out_of_memory_is_told(photos: Path, model: Path, tmp_path: Path) -> None:
    words = f"explain {model} {photos} --image_size 1600 --batch_size 16 --num_workers 0 --out {tmp_path}/maps"
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, *words.split()], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    text = complaint(ended, "explain")
    assert "out of memory" in text
    assert "batch" in text


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # a terminal and `timeout` ask the reading processes, too
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_asked_to_end_saves_and_says_so_by_its_code(
    photos: Path, tmp_path: Path, number: signal.Signals, code: int, send: Callable[[int, int], None]
) -> None:
    process = subprocess.Popen(
        [*VIT.split(), "train", "--data.root", str(photos), "--data.batch_size", "2", "--data.num_workers", "1",
         "--model.variant", "pico", "--model.patch_size", "16", "--model.image_size", "32", "--device", "cpu",
         "--trainer.max_epochs", "1000", "--run", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2, process)
    send(process.pid, number)
    assert process.wait(60) == code
    assert last_checkpoint(tmp_path / "run").name == "last.ckpt"


class Trainer:
    """What a CheckpointWriter needs of a trainer, with as many weights as take a while to write."""

    step = 0
    is_global_zero = True

    def save_checkpoint(self, path: Path) -> None:
        self.step += 1
        torch.save({"state_dict": {"weight": torch.full((2**20,), float(self.step))}}, path)


def save_for_ever(run: Path, begun: Event) -> None:
    writer, trainer = CheckpointWriter(run, minutes=0, stop=StopRequest()), Trainer()
    while True:
        writer._save(trainer, "last.ckpt")  # type: ignore[arg-type]
        begun.set()


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_kill_in_the_midst_of_saving_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    random, context = np.random.default_rng(0), multiprocessing.get_context("fork")
    path = tmp_path / "checkpoints" / "last.ckpt"
    for _ in range(40):
        begun = context.Event()
        process = context.Process(target=save_for_ever, args=(tmp_path, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        process.close()
        assert is_whole(path)
        weight = torch.load(path, weights_only=True)["state_dict"]["weight"]
        assert weight.min() == weight.max() > 0
    # What the kills left half written goes by names that nothing reads.
    assert {each.name for each in path.parent.iterdir() if not each.name.startswith(".")} == {
        "last.ckpt", "last.ckpt.sha256",
    }  # fmt: skip


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Returns when it has happened; fails when the process ends before, or it takes too long."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
