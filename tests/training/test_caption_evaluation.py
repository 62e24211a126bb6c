"""The measures of captions against numbers worked by hand, and what is written."""

import csv
import json
import math

import pytest
import torch

from vit.foundation import UserError
from vit.models.captioner import Captioner
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder
from vit.models.generation import GenerationOptions
from vit.training.caption_evaluation import (
    Captioned,
    CaptionEvaluation,
    caption_batches,
    evaluate_captions,
    write_caption_evaluation,
    write_captions,
)

PAD, START, END = 0, 1, 2
CPU = torch.device("cpu")
GREEDY = GenerationOptions(max_tokens=6)


@pytest.fixture
def model(randomise):
    encoder = image_encoder(image_size=(14, 14), patch_size=(7, 7), embed_dim=16, depth=2, num_heads=2)
    return randomise(Captioner(encoder, Decoder(9, 8, 16, 2, 2), start=START, end=END, pad=PAD), std=0.4)


def batches():
    """Two of two images, and one of which nothing could be read."""
    images = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(3))
    texts = [[START, 3, 4, END], [START, 5, END], [START, 6, 7, 8, END], [START, 8, END]]
    for rows in ([0, 1], [2, 3]):
        references = [[texts[n], [START, 3, END]] for n in rows]
        yield {"image": images[rows], "ids": [texts[n] for n in rows], "references": references,
               "index": torch.tensor(rows), "skipped": []}  # fmt: skip
    yield {"image": images[:0], "ids": [], "references": [], "index": torch.tensor([], dtype=torch.int64),
           "skipped": [("4.png", "the file is empty")]}  # fmt: skip


def spell(ids):
    return " ".join("abcdefghi"[number] for number in ids if number > END)


def test_loss_and_perplexity_are_means_over_tokens(model):
    found = evaluate_captions(model, batches(), [f"{n}.png" for n in range(5)], spell, GREEDY, device=CPU)
    total, count = 0.0, 0
    for batch in list(batches())[:2]:
        for image, ids in zip(batch["image"], batch["ids"], strict=True):
            logits = model(image[None], torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
            total -= sum(logits[place, token].item() for place, token in enumerate(ids[1:]))
            count += len(ids) - 1
    metrics = found.metrics()
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (metrics["images"], metrics["skipped"]) == (4, 1)
    assert [image.name for image in found.images] == ["0.png", "1.png", "2.png", "3.png"]
    assert found.skipped == {"4.png": "the file is empty"}


def image(caption, *references, words=1.0):
    return Captioned("x.png", caption, list(references), 0.5, words, loss=2.0, tokens=4)


def test_exact_match_and_bleu_by_hand():
    """ "a b c d f" against "a b c d e": 4/5 words, 3/4, 2/3 and 1/2 of the longer runs, no brevity penalty."""
    found = CaptionEvaluation([image("a b c d f", "a b c d e", words=5 / 6), image("p q r s", "p q", "p q r s")])
    metrics = found.metrics()
    assert metrics["exact_match"] == 0.5
    assert metrics["words_right"] == pytest.approx((5 / 6 + 1) / 2)
    # Over both captions together: 8 of 9 words, 6 of 7, 4 of 5, 2 of 3.
    assert metrics["bleu"] == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(0.5))


def test_cider_is_10_for_the_references_themselves_and_less_for_others():
    pytest.importorskip("pycocoevalcap")
    same = [image(text, text) for text in ("a red bird sits here", "the old owl sees all", "two grey gulls fly far")]
    assert CaptionEvaluation(same).metrics()["cider"] == pytest.approx(10)
    other = [
        image(text, reference.references[0]) for text, reference in zip(("a red bird", "no", "x y"), same, strict=True)
    ]
    assert 0 < CaptionEvaluation(other).metrics()["cider"] < 5


def test_without_the_package_cider_is_none(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider", None)
    assert CaptionEvaluation([image("a b", "a b")]).metrics()["cider"] is None


def test_files(model, tmp_path):
    found = evaluate_captions(model, batches(), [f"{n}.png" for n in range(5)], spell, GREEDY, device=CPU)
    metrics = write_caption_evaluation(found, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    rows = read(tmp_path / "captions.csv")
    assert [row["reference"] for row in rows] == ["d e", "f", "g h i", "i"]
    captions = caption_batches(model, batches(), GREEDY, device=CPU)
    skipped = write_captions(captions, [f"{n}.png" for n in range(5)], spell, tmp_path / "out.csv")
    assert skipped == {"4.png": "the file is empty"}
    predicted = read(tmp_path / "out.csv")
    assert [row["caption"] for row in predicted] == [row["caption"] for row in rows]
    assert [row["probability"] for row in predicted] == [row["probability"] for row in rows]


def test_of_no_image_there_is_no_table(tmp_path):
    found = [({"skipped": [("4.png", "the file is empty")]}, None)]
    assert write_captions(found, ["4.png"], spell, tmp_path / "out.csv") == {"4.png": "the file is empty"}
    assert list(tmp_path.iterdir()) == []


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_drawn_captions_follow_from_the_seed(model):
    drawn = GenerationOptions(max_tokens=6, temperature=2.0)

    def texts(seed):
        found = caption_batches(model, batches(), drawn, device=CPU, seed=seed)
        return [captions.ids.tolist() for _, captions in found if captions is not None]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_nothing_read_is_an_error(model):
    with pytest.raises(UserError, match="None of the 5 images could be read"):
        evaluate_captions(model, list(batches())[2:], ["x"] * 5, spell, GREEDY, device=CPU)
