"""The pipelines against timm and torchvision, and their determinism."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.transforms_factory import create_transform, transforms_imagenet_eval
from torchvision.transforms import v2

from datamodules.reading import read_image
from datamodules.transforms import _resize, eval_transform, train_transform
from vit.foundation import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(img_h, img_w, seed=0):
    """Smooth shapes with noise: something whose resizing can go wrong."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((img_w, img_h))
    noisy = np.asarray(coarse).astype(int) + rng.integers(-40, 40, (img_h, img_w, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(17, 17), (17, 29), (224, 224)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("img", [(97, 131), (131, 98), (20, 20), (17, 301)])
def test_evaluation_equals_timm(size, interpolation, img):
    image = picture(*img)
    for mode, theirs_mode, crop_pct in (("squash", "squash", 1.0), ("crop", "center", 0.875), ("crop", "center", 1)):
        options = {"crop_pct": crop_pct, "interpolation": interpolation}
        theirs = transforms_imagenet_eval(size, crop_mode=theirs_mode, mean=MEAN, std=STD, **options)
        ours = eval_transform(size, MEAN, STD, resize_mode=mode, **options)(image)
        assert ours.shape == (3, *size)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs(Image.fromarray(image)), atol=2e-6, rtol=1e-6)


def test_a_mask_stays_aligned():
    image = np.zeros((60, 90, 3), np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[12:36, 30:72] = True
    image[mask] = 255
    plain = ((23, 31), (0, 0, 0), (1, 1, 1))
    for transform in (
        eval_transform(*plain),
        eval_transform(*plain, resize_mode="crop", crop_pct=0.9),
        train_transform(*plain, color_jitter=0),
    ):
        for index in range(5):
            tensor, moved = transform.with_mask(image, mask, (0, 0, index))
            assert moved.dtype == torch.bool
            assert moved.shape == (23, 31)
            # only pixels at the rim of the shape may differ: bicubic is grey there
            assert ((tensor[1] > 0.5) != moved).float().mean() < 0.1
            assert moved.any()


def test_training_is_a_function_of_the_seed_only():
    image = picture(60, 80)
    transform = train_transform((23, 31), MEAN, STD, erase=0.5)
    first = [transform(image, (1, 0, index)) for index in range(6)]
    np.random.seed(3)  # noqa: NPY002
    random.seed(4)
    torch.manual_seed(5)
    other = train_transform((23, 31), MEAN, STD, erase=0.5)
    for index in reversed(range(6)):  # another object, another order
        assert torch.equal(other(image, (1, 0, index)), first[index])
    assert not any(torch.equal(first[0], one) for one in first[1:])
    for seed in ((1, 1, 0), (2, 0, 0), (0, 1, 0)):
        assert not torch.equal(first[0], transform(image, seed))


def test_training_leaves_the_global_generators_alone():
    state = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    train_transform((23, 31), MEAN, STD, erase=1.0)(picture(60, 80), (0, 0, 0))
    assert state == (
        np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    )  # fmt: skip


def test_steps_are_independent_of_each_other():
    """With a stream for each step, all started alike, whether a photo is flipped would tell the size of its crop."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :, 0] = np.arange(64) * 4  # red tells the column
    transform = train_transform((16, 16), (0, 0, 0), (1, 1, 1), crop_scale=0.2, color_jitter=0)
    rows = torch.stack([transform(image, (0, 0, index))[0, 8] for index in range(400)])
    flipped = rows[:, 0] > rows[:, -1]
    width = (rows[:, 0] - rows[:, -1]).abs()
    assert 0.42 < flipped.float().mean() < 0.58
    assert width.max() - width.min() > 0.4
    assert abs(width[flipped].mean() - width[~flipped].mean()) < 0.04


def test_options_switch_their_steps_off_and_on():
    image = picture(60, 80)
    options = {"crop_scale": 1.0, "hflip": 0.0, "color_jitter": 0.0}
    plain = train_transform((23, 31), MEAN, STD, **options)
    expected = eval_transform((23, 31), MEAN, STD)(image)
    assert torch.equal(plain(image, (0, 0, 0)), expected)  # nothing random is left, and the photo is whole
    flip = train_transform((23, 31), MEAN, STD, **(options | {"hflip": 1.0}))(image, (0, 0, 0))
    torch.testing.assert_close(flip, expected.flip(2), atol=0.02, rtol=0)
    erase = train_transform((23, 31), MEAN, STD, **options, erase=1.0)(image, (0, 0, 0))
    share = (erase != expected).any(0).float().mean()
    assert 0.005 < share < 0.2
    assert erase[:, (erase != expected).any(0)].abs().max() < 0.02  # the mean colour
    jitter = train_transform((23, 31), MEAN, STD, **(options | {"color_jitter": 0.4}))(image, (0, 0, 0))
    assert 0.01 < (jitter - expected).abs().mean() < 1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_random_crop_is_resized_as_pillow_does_it(interpolation, monkeypatch):
    plain = ((41, 56), (0, 0, 0), (1, 1, 1))
    pipeline = train_transform(*plain, crop_scale=0.2, hflip=0.0, color_jitter=0.0, interpolation=interpolation)
    for number, img in enumerate([(97, 131), (131, 98), (20, 20), (300, 411)]):
        image = picture(*img, seed=number)
        image.setflags(write=False)  # as some decoders leave it
        ours = [255 * pipeline(image, seed=(number, again)) for again in range(8)]
        with monkeypatch.context() as patch:
            patch.setattr("datamodules.transforms._resize_quickly", _resize)
            pillows = [255 * pipeline(image, seed=(number, again)) for again in range(8)]
        for one, other in zip(ours, pillows, strict=True):
            assert (one - other).abs().max() < 4.5
            assert (one - other).abs().mean() < 0.4


def test_a_crop_never_enlarges_a_photo_decoded_at_min_size():
    transform = train_transform((50, 50), (0, 0, 0), (1, 1, 1), crop_scale=0.3, hflip=0, color_jitter=0)
    side = transform.min_size[0]
    image = np.zeros((side, side, 3), np.uint8)
    image[:, :, 0] = np.arange(side)[None]
    image[:, :, 1] = np.arange(side)[:, None]
    for index in range(200):
        made = transform(image, (0, 0, index)) * 255
        assert made[0].max() - made[0].min() >= 48  # columns seen, of at least 50
        assert made[1].max() - made[1].min() >= 48


@pytest.mark.parametrize(("mode", "crop_pct"), [("squash", 1.0), ("crop", 0.9)])
def test_a_large_jpeg_is_evaluated_as_timm_does(tmp_path, mode, crop_pct):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1600, 1203), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=92)
    transform = eval_transform((64, 64), MEAN, STD, resize_mode=mode, crop_pct=crop_pct)
    ours = transform(read_image(tmp_path / "x.jpg", min_size=transform.min_size))
    theirs = create_transform(
        (3, 64, 64), mean=MEAN, std=STD, interpolation="bicubic",
        crop_mode="center" if mode == "crop" else mode, crop_pct=crop_pct,
    )  # fmt: skip
    with Image.open(tmp_path / "x.jpg") as photo:
        torch.testing.assert_close(ours, theirs(photo.convert("RGB")), atol=1e-5, rtol=0)


def test_an_unknown_filter_is_named():
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        eval_transform((8, 8), MEAN, STD, interpolation="bicubik")


def test_importing_opens_no_socket():
    code = """
import sys
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event.startswith("socket.") else None)
import datamodules.transforms, datamodules.image_files
sys.exit(str(calls) if calls else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


POLICIES = ("rand-m9-n2", "rand-m9-mstd0.5-inc1", "auto", "original-mstd0.5", "3a", "augmix-m5-w4-d2", "trivial")


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_those_of_timm_and_torchvision(policy):
    image = picture(31, 31)
    ours = train_transform((31, 31), MEAN, STD, crop_scale=1, hflip=0, color_jitter=0.4, auto_augment=policy)
    settings = {"translate_const": 13, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR}
    if policy == "trivial":
        theirs = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=[124, 116, 104])
    elif policy.startswith("rand"):
        theirs = timm_policies.rand_augment_transform(policy, settings)
    elif policy.startswith("augmix"):
        theirs = timm_policies.augment_and_mix_transform(policy, settings | {"translate_pct": 0.3})
    else:
        theirs = timm_policies.auto_augment_transform(policy.replace("auto", "original"), settings)
    different = 0
    for index in range(12):
        tensor = ours(image, (0, 0, index))
        seed = ours.steps.transforms[-1].params["seed"]  # what albumentations drew for this image
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        expected = np.asarray(theirs(Image.fromarray(image)))
        values = (tensor.permute(1, 2, 0).numpy() * STD + MEAN) * 255
        np.testing.assert_array_equal(np.rint(values), expected)
        different += not np.array_equal(expected, image)
    assert different >= 4


def test_policies_are_functions_of_the_seed_and_leave_the_generators_alone():
    image = picture(40, 50)
    transform = train_transform((23, 31), MEAN, STD, auto_augment="rand-m9-mstd0.5-inc1", erase=0.5, erase_mode="pixel")
    state = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    first = [transform(image, (1, 0, index)) for index in range(6)]
    assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()) == state  # noqa: NPY002
    random.seed(4)
    other = train_transform((23, 31), MEAN, STD, auto_augment="rand-m9-mstd0.5-inc1", erase=0.5, erase_mode="pixel")
    for index in reversed(range(6)):
        assert torch.equal(other(image, (1, 0, index)), first[index])
    assert not any(torch.equal(first[0], one) for one in first[1:])


@pytest.mark.parametrize("policy", ["rand-m1-n8", "rand-m10-n8-inc1", "augmix-m1-w1-d8", "3a-mstd9"])
def test_the_strongest_policies_leave_something_of_each_image(policy):
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    transform = train_transform((16, 16), MEAN, STD, auto_augment=policy)
    for seed in range(100):  # posterising to no bit is an error in Pillow
        assert transform(photo, (0, 0, seed)).isfinite().all()


@pytest.mark.parametrize("policy", ["rnd-m9", "rand-x9", "rand-mnine", "v7", "original-q3", "trivial-m9", "augmix-z1"])
def test_policies_that_there_are_not(policy):
    with pytest.raises(UserError, match="Allowed are rand-m9-n2") as caught:
        train_transform((23, 31), MEAN, STD, auto_augment=policy)
    assert len(str(caught.value).splitlines()) <= 5


def test_erasing_as_zhong_et_al():
    """Area 2 to 33%, sides 3:10 to 10:3; random pixels, or the mean colour."""
    image = np.full((64, 96, 3), 255, np.uint8)
    plain = {"crop_scale": 1, "hflip": 0, "color_jitter": 0, "erase": 1.0}
    for mode in ("mean", "pixel"):
        transform = train_transform((64, 96), MEAN, STD, **plain, erase_mode=mode)
        shares = []
        for index in range(60):
            changed = (transform(image, (0, 0, index)) != transform(image, (0, 0, index))).any()
            assert not changed
            values = (transform(image, (0, 0, index)).permute(1, 2, 0).numpy() * STD + MEAN) * 255
            rows, columns = np.nonzero((np.rint(values) != 255).any(2))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            shares.append(height * width / image[..., 0].size)
            assert 0.27 < height / width < 3.7
            assert (len(np.unique(np.rint(values[rows, columns]), axis=0)) == 1) == (mode == "mean")
        assert min(shares) > 0.017
        assert max(shares) < 0.35
        assert max(shares) > 0.25
