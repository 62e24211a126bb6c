"""Where and in which arithmetic a model runs, and the table of its predictions."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vit.inference
from vit.foundation import UserError
from vit.inference import arithmetic, choose_device, choose_precision, predict_batches, views, write_predictions
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def tiny(num_classes: int = 3) -> Classifier:
    encoder = image_encoder(image_size=(14, 21), patch_size=(7, 7), embed_dim=10, depth=2, num_heads=2, drop_path=0.5)
    return Classifier(encoder, num_classes, labels=["crow", "heron", "robin"][:num_classes])


def batches(images: Tensor, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield {"image": part, "index": torch.arange(start, start + len(part)), "skipped": []}


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "precision"),
    [
        (True, True, "GenuineIntel", "bf16"),
        (False, True, "GenuineIntel", "fp32"),
        (False, True, "AuthenticAMD", "bf16"),
        (False, False, "AuthenticAMD", "fp32"),
        (False, True, "", "fp32"),
    ],
)
def test_auto_takes_bf16_on_a_processor_that_is_quicker_in_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, vendor: str, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(vit.inference, "_vendor", lambda: vendor)
    assert choose_precision("auto", CPU) == precision


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_on_a_gpu_that_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, supported: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not supported)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert choose_precision("auto", CUDA) == precision
    assert choose_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: precision == "fp32")
    assert choose_precision(precision, CPU) == precision


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_run_in_the_chosen_arithmetic(precision: str, dtype: torch.dtype) -> None:
    with arithmetic(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == device
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"no {device} device"):
        choose_device(device)


def test_probabilities_are_those_of_one_image_at_a_time() -> None:
    model, images = tiny().train(), torch.randn(5, 3, 14, 21)
    found = list(predict_batches(model, batches(images, 2), device=CPU))
    assert [len(batch["index"]) for batch, _ in found] == [2, 2, 1]
    probabilities = torch.cat([each for _, each in found])
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    # In evaluation mode: with a drop path of 0.5, no two passes in training mode agree.
    alone = torch.cat([model.eval()(image[None]).softmax(1) for image in images]).detach()
    torch.testing.assert_close(probabilities, alone)


def test_a_batch_of_which_nothing_could_be_read_has_no_probabilities() -> None:
    empty = {"image": torch.empty(0, 3, 14, 21), "index": torch.empty(0, dtype=torch.int64), "skipped": [("a", "b")]}
    ((batch, probabilities),) = predict_batches(tiny(), [empty], device=CPU)
    assert probabilities.shape == (0, 3)
    assert batch["skipped"] == [("a", "b")]


PROBABILITIES = torch.tensor([[0.125, 0.5, 0.375], [0.75, 0.0, 0.25]])
FOUND = [
    ({"index": torch.tensor([2]), "skipped": [("/p/broken.png", "the file is empty")]}, PROBABILITIES[:1]),
    ({"index": torch.tensor([0]), "skipped": []}, PROBABILITIES[1:]),
]


def test_predictions_are_written_likeliest_first_under_the_names_of_the_images(tmp_path: Path) -> None:
    path = tmp_path / "out" / "labels.csv"
    skipped = write_predictions(FOUND, ["a.png", "broken.png", "ü, b.png"], ["crow", "heron", "robin"], path, topk=2)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "image,label,probability,label_2,probability_2",
        '"ü, b.png",heron,0.500000,robin,0.375000',
        "a.png,crow,0.750000,robin,0.250000",
    ]
    assert skipped == {"/p/broken.png": "the file is empty"}


@pytest.mark.parametrize(("topk", "labels"), [(0, 1), (1, 1), (3, 3), (99, 3)])
def test_no_more_labels_are_written_than_there_are(tmp_path: Path, topk: int, labels: int) -> None:
    write_predictions(FOUND, ["a", "b", "c"], ["crow", "heron", "robin"], tmp_path / "labels.csv", topk=topk)
    with (tmp_path / "labels.csv").open() as file:
        assert [len(row) for row in csv.reader(file)] == [1 + 2 * labels] * 3


def test_of_no_image_there_is_no_table(tmp_path: Path) -> None:
    nothing = {"index": torch.empty(0, dtype=torch.int64), "skipped": [("/p/broken.png", "damaged")]}
    found = [(nothing, torch.empty(0, 3))]
    path = tmp_path / "out" / "labels.csv"
    assert write_predictions(found, ["broken.png"], ["crow"], path, topk=1) == {"/p/broken.png": "damaged"}
    assert not path.exists()


def test_predictions_that_stop_half_way_leave_no_table(tmp_path: Path) -> None:
    def breaking() -> Iterator[tuple[dict[str, Any], Tensor]]:
        yield FOUND[0]
        raise UserError("Can't read x.")

    with pytest.raises(UserError):
        write_predictions(breaking(), ["a", "b", "c"], ["crow", "heron", "robin"], tmp_path / "labels.csv", topk=1)
    assert list(tmp_path.iterdir()) == []


def test_crops_are_those_of_torchvision() -> None:
    from torchvision.transforms import functional

    images = torch.randn(2, 3, 16, 32)
    expected = functional.ten_crop(images, [14, 28])  # the five crops, then those of the mirror images
    found = list(views(images, "crops"))
    for view, mirrored, crop in zip(found[::2], found[1::2], expected[:5], strict=True):
        torch.testing.assert_close(view, torch.nn.functional.interpolate(crop, (16, 32), mode="bicubic"))
        torch.testing.assert_close(mirrored, view.flip(-1))


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("crops", 10)])
def test_probabilities_are_the_mean_over_the_views(tta: str, count: int) -> None:
    model, images = tiny().eval(), torch.randn(5, 3, 14, 21)
    seen = list(views(images, tta))
    assert len(seen) == count
    torch.testing.assert_close(seen[1 if tta == "flip" else 0], seen[0].flip(-1) if tta == "flip" else seen[0])
    with torch.inference_mode():
        expected = torch.stack([model(view).softmax(dim=1) for view in seen]).mean(dim=0)
    found = torch.cat([scores for _, scores in predict_batches(model, batches(images, 2), device=CPU, tta=tta)])
    torch.testing.assert_close(found, expected)
    ((_, nothing),) = predict_batches(model, [{"image": images[:0]}], device=CPU, tta=tta)
    assert nothing.shape == (0, 3)
