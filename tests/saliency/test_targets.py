"""What `--target` may say, and the classes that follow for each image."""

import pytest
import torch

from vit.foundation import UserError
from vit.saliency.targets import parse_target

LABELS = ("crow", "2", "heron", "predicted")
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 2.0, 4.0]])


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("image,true,other\na/x.jpg,heron,0\nb/x.jpg,2,3\n", encoding="utf-8")
    return path


def classes(text, labels=LABELS[:3], names=("a/x.jpg", "b/x.jpg")):
    return parse_target(text, labels, 4).of(names, LOGITS)


def test_the_predicted_class_is_each_images_own():
    assert classes("predicted") == [[1], [0]]


def test_a_label_and_an_index_are_the_same_for_all():
    assert classes("heron") == [[2], [2]]
    assert classes("3") == [[3], [3]]


def test_what_is_a_label_is_the_label():
    assert classes("2") == [[1], [1]]
    assert classes("predicted", LABELS) == [[3], [3]]


def test_topk_gives_the_likeliest_first():
    assert classes("topk:2") == [[1, 3], [0, 3]]
    target = parse_target("topk:3", LABELS, 4)
    assert target.needs_logits
    assert target.maps_an_image == 3


def test_a_column_gives_each_image_its_class(table):
    target = parse_target(f"{table}:true", LABELS[:3], 4)
    assert not target.needs_logits
    assert target.maps_an_image == 1
    assert target.of(["b/x.jpg", "a/x.jpg"]) == [[1], [2]]
    assert classes(f"{table}:other") == [[0], [3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "herron",
            "'herron' is not a label of the model \\(did you mean 'heron'\\?\\).\nAllowed are predicted, its 4 labels",
        ),
        ("4", "'4' is not a label"),
        ("-1", "'-1' is not a label"),
        ("topk:0", "allowed are topk:1 to topk:4"),
        ("topk:5", "allowed are topk:1 to topk:4"),
        ("topk:many", "allowed are topk:1 to topk:4"),
        ("nowhere.csv:true", "that file does not exist"),
        ("TABLE:tru", "no column 'tru' \\(did you mean 'true'\\?\\).\nIt has image, true, other"),
        ("TABLE:image", "row 2: 'a/x.jpg' is not a label"),
    ],
)
def test_what_can_not_be_is_refused(table, text, message):
    with pytest.raises(UserError, match=message) as refused:
        classes(text.replace("TABLE", str(table)))
    assert len(str(refused.value).splitlines()) <= 5


def test_an_image_that_the_table_lacks_is_refused(table):
    with pytest.raises(UserError, match=r"no class for 'a/y.jpg' \(1 of 2 images have none\) \(did you mean 'a/x.jpg'"):
        parse_target(f"{table}:true", LABELS, 4).of(["a/x.jpg", "a/y.jpg"])


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "photo.csv"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="is not a CSV in UTF-8"):
        parse_target(f"{path}:true", LABELS, 4)
