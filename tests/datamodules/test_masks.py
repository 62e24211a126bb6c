"""Masks and boxes: which belongs to which photograph, and what is the object in them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

from datamodules.image_files import list_images
from datamodules.masks import MASK_SIDE, Annotation, MarkedImages, find_annotations, labels_and_groups, read_mask
from datamodules.sampling import Skipped
from vit.foundation import UserError

SIZE = (40, 60)  # height, width of every photo
STEPS = np.zeros(SIZE, np.uint8)
STEPS[:20, :30] = 1


def picture(path: Path, values: np.ndarray = STEPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **({"quality": 30} if path.suffix == ".jpg" else {}))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/x.jpg", "a/y.jpg", "b/x.jpg"):
        picture(tmp_path / "photos" / name, np.full((*SIZE, 3), 128, np.uint8))
    return tmp_path / "photos"


def corner(mask: np.ndarray) -> None:
    """Asserts that the object is the upper left quarter."""
    expected = np.zeros((MASK_SIDE, MASK_SIDE), bool)
    expected[: MASK_SIDE // 2, : MASK_SIDE // 2] = True
    assert mask.dtype == bool
    assert np.array_equal(mask, expected)


def of_classes() -> Image.Image:
    """A palette of classes: 0 black, 1 dark, 2 bright. The object is the classes 1 and 2."""
    labels = STEPS.copy()
    labels[:20, :15] = 2
    made = Image.fromarray(labels).convert("P")
    made.putpalette([0, 0, 0, 40, 0, 0, 250, 250, 250])
    made.putdata(labels.ravel().tolist())
    return made


@pytest.mark.parametrize(
    "values",
    [STEPS, STEPS * 255, STEPS.astype(bool), np.stack([STEPS * 90, STEPS * 0, STEPS * 0], axis=2)],
    ids=["0 and 1", "0 and 255", "1 bit", "a dark colour"],
)
def test_of_two_values_all_but_black_is_the_object(tmp_path: Path, values: np.ndarray) -> None:
    corner(read_mask(Annotation(picture(tmp_path / "m.png", values)), SIZE))


@pytest.mark.parametrize("high", [1, 100, 300, 65535])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_of_two_values_in_sixteen_bits_all_but_black_is_the_object(tmp_path: Path, high: int, suffix: str) -> None:
    path = picture(tmp_path / f"m{suffix}", STEPS.astype(np.uint16) * high)
    with Image.open(path) as saved:
        assert saved.mode.startswith("I;16")
    corner(read_mask(Annotation(path), SIZE))


def test_two_values_of_floats_and_of_turned_and_negative_pictures(tmp_path: Path) -> None:
    corner(read_mask(Annotation(picture(tmp_path / "float.tif", STEPS.astype(np.float32) / 1000)), SIZE))
    corner(read_mask(Annotation(picture(tmp_path / "long.tif", STEPS.astype(np.int32) * 7)), SIZE))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # stored upside down
    Image.fromarray(STEPS[::-1, ::-1].astype(np.uint16)).save(tmp_path / "turned.png", exif=exif)
    corner(read_mask(Annotation(tmp_path / "turned.png"), SIZE))
    white_is_zero = {PHOTOMETRIC_INTERPRETATION: 0}
    negative = Image.fromarray(np.where(STEPS, 0, 65535).astype(np.uint16))
    negative.save(tmp_path / "negative.tif", tiffinfo=white_is_zero)
    corner(read_mask(Annotation(tmp_path / "negative.tif"), SIZE))
    corner(read_mask(Annotation(picture(tmp_path / "below.tif", STEPS.astype(np.int32) - 1)), SIZE))


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    soft = STEPS * 255
    soft[20, :30], soft[19, :30] = 100, 140
    corner(read_mask(Annotation(picture(tmp_path / "m.png", soft)), SIZE))
    corner(read_mask(Annotation(picture(tmp_path / "m.jpg", STEPS * 255)), SIZE))


def test_of_a_palette_every_class_is_the_object(tmp_path: Path) -> None:
    of_classes().save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as saved:
        assert saved.mode == "P"
    corner(read_mask(Annotation(tmp_path / "m.png"), SIZE))


def test_a_mask_of_the_same_proportions_will_do_and_no_other(tmp_path: Path, photos: Path) -> None:
    corner(read_mask(Annotation(picture(tmp_path / "m.png", STEPS.repeat(3, 0).repeat(3, 1))), SIZE))
    files = list_images([photos / "a" / "x.jpg"])
    turned = Annotation(picture(tmp_path / "turned.png", np.ascontiguousarray(STEPS.T)))
    found = MarkedImages(files, [turned], [-1], (8, 8), (0.5,) * 3, (0.5,) * 3)[0]
    assert isinstance(found, Skipped)
    assert found.reason == "its mask is 40 x 60 pixels, but the photo is 60 x 40"


def test_boxes_are_in_pixels_of_the_photo() -> None:
    corner(read_mask(Annotation(boxes=((0, 0, 30, 20),)), SIZE))
    corner(read_mask(Annotation(boxes=((-5, -9, 30, 12), (0, 11.5, 30, 20))), SIZE))


def test_a_folder_mirrors_the_photos_or_has_their_names(tmp_path: Path, photos: Path) -> None:
    masks = tmp_path / "masks"
    mirrored = picture(masks / "a" / "x.png")
    named = picture(masks / "elsewhere" / "y.png")
    files = list_images([photos])
    found = find_annotations(masks, files)
    # b/x.jpg has no mask of its own, and the one called x is not taken for it.
    assert [each and each.mask for each in found] == [mirrored, named, None]
    assert labels_and_groups(files, found) == (["a", "a", "b"], None)


def test_a_csv_of_boxes(tmp_path: Path, photos: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(
        "\ufeffimage, X0 ,y0,x1,y1,label,group\nphotos/a/x.jpg,0,0,10,10,crow,film\n"
        "photos/a/x.jpg,20.5,20,30,30,crow,film\ny.jpg,1,2,3,4,,\nunknown.jpg,1,2,3,4,,\n"
    )
    files = list_images([photos])
    found = find_annotations(table, files)
    boxes = ((0.0, 0.0, 10.0, 10.0), (20.5, 20.0, 30.0, 30.0))
    assert found == [Annotation(None, boxes, "crow", "film"), Annotation(None, ((1.0, 2.0, 3.0, 4.0),)), None]
    labels, groups = labels_and_groups(files, found)
    assert labels == ["crow", "a", "b"]
    assert groups == ["film", str(files[1].path), str(files[2].path)]


def test_a_csv_of_masks(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "index.csv").write_text("image,mask,group\na/y.jpg,masks/one.png,g\n")
    files = list_images([photos])
    _, found, _ = find_annotations(tmp_path / "index.csv", files)
    assert found == Annotation(tmp_path / "masks" / "one.png", group="g")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x0,y0,x1\nx,1,2,3\n", "has the columns image, x0, y0, x1"),
        ("photo,mask\n", "It needs image and mask"),
        ("image,x0,y0,x1,y1\na/x.jpg,5,0,5,9\n", "line 2: invalid box 5, 0, 5, 9"),
        ("image,x0,y0,x1,y1\na/x.jpg,5,0,six,9\n", "line 2: invalid box 5, 0, six, 9"),
        ("image,x0,y0,x1,y1\na/x.jpg,1,,5,9\n", "line 2: invalid box 1, nothing, 5, 9"),
        ("image,x0,y0,x1,y1\na/x.jpg,,2,5,9\n", "line 2: invalid box nothing, 2, 5, 9"),
        ("image,mask\na/x.jpg,1.png\na/x.jpg,2.png\n", "line 3: a second mask"),
        ("image,mask\nz.jpg,1.png\n", "fits none of the 3 images, such as a/x.jpg"),
        ("", "has the columns none"),
    ],
)
def test_a_csv_that_can_not_be_used(tmp_path: Path, photos: Path, text: str, message: str) -> None:
    (tmp_path / "given.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        find_annotations(tmp_path / "given.csv", list_images([photos]))
    assert len(str(caught.value).splitlines()) <= 5


def test_masks_that_are_not_there(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="did you mean 'masks'"):
        find_annotations(tmp_path / "mask", list_images([photos]))
    (tmp_path / "given.csv").write_bytes(b'image,mask\n"a/x.jpg,b\n')
    with pytest.raises(UserError, match="is not a CSV"):
        find_annotations(tmp_path / "given.csv", list_images([photos]))


def test_what_can_not_be_used_is_skipped_with_its_reason(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    files = list_images([photos])
    empty = Annotation(picture(tmp_path / "empty.png", STEPS * 0))
    marked = MarkedImages(
        files, [Annotation(tmp_path / "bad.png"), empty, None], [0, 1, -1], (8, 8), (0.5,) * 3, (0.5,) * 3
    )
    (batch,) = marked.loader(4, 0)
    reasons = {Path(skipped.path).name + " " + skipped.reason for skipped in batch["skipped"]}
    assert {reason.split(":")[0] for reason in reasons} == {
        "x.jpg its mask can't be used",
        "y.jpg its mask has no object, or one too small to be seen at 224 x 224 pixels",
        "x.jpg it has no mask",
    }
    assert batch["mask"].shape == (0, MASK_SIDE, MASK_SIDE)
    with pytest.raises(UserError, match=r"Can't read .*x\.jpg: its mask can't be used"):
        list(marked.loader(4, 0, strict=True))


def test_items(tmp_path: Path, photos: Path) -> None:
    files = list_images([photos])
    known = [Annotation(picture(tmp_path / "m.png"))] * 3
    (batch,) = MarkedImages(files, known, [2, 1, -1], (8, 8), (0.5,) * 3, (0.5,) * 3, photo_side=30).loader(3, 0)
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["target"].tolist() == [2, 1, -1]
    corner(batch["mask"][1].numpy())
    assert batch["photo"][0].shape == (20, 30, 3)
    (batch,) = MarkedImages(files, None, [0, 0, 0], (8, 8), (0.5,) * 3, (0.5,) * 3).loader(3, 0)
    assert "mask" not in batch
