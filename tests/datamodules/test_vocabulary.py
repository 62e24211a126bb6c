"""The vocabulary: captions go to ids and come back, and what a file may hold."""

import pickle

import pytest
from tokenizers import Tokenizer, models

from datamodules.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary
from vit.foundation import UserError

CAPTIONS = ["A robin sits on a branch, over water.", "an owl's nest in front of trees", "a red-billed robin!"]


@pytest.fixture
def words():
    return Vocabulary.train(CAPTIONS)


def test_captions_come_back_in_small_letters(words):
    assert [words.decode(words.encode(text)) for text in CAPTIONS] == [text.lower() for text in CAPTIONS]
    assert words.decode(words.encode("  A   ROBIN ,over water ")) == "a robin, over water"


def test_a_text_stands_between_start_and_end(words):
    ids = words.encode("a robin")
    names = [words.tokenizer.id_to_token(number) for number in ids]
    assert names == [START, "a", "robin", END]
    assert (ids[0], ids[-1]) == (words.start, words.end)
    assert words.encode("") == [words.start, words.end]


def test_every_word_and_sign_is_one_token(words):
    texts = {"a", "robin", "sits", "on", "branch", ",", "over", "water", ".", "an", "owl's", "nest", "in", "front"}
    assert set(words.tokenizer.get_vocab()) == texts | {"of", "trees", "red-billed", "!"} | set(SPECIAL)
    assert len(words) == len(texts) + 4 + 4


def test_special_tokens_have_ids_of_their_own_whatever_a_caption_says(words):
    assert len({words.pad, words.unknown, words.start, words.end}) == 4
    assert words.encode("a heron")[2] == words.unknown
    assert words.decode([words.start, *words.encode("a heron")[1:], words.pad, words.pad]) == f"a {UNKNOWN}"


def test_the_commonest_words_are_kept():
    small = Vocabulary.train(["b a", "b c", "a b d"], size=6)
    assert set(small.tokenizer.get_vocab()) == {"a", "b", *SPECIAL}


def test_training_does_not_depend_on_chance():
    assert Vocabulary.train(CAPTIONS).json == Vocabulary.train(list(CAPTIONS)).json


def test_it_comes_back_from_its_text_a_file_and_another_process(words, tmp_path):
    (tmp_path / "tokenizer.json").write_text(words.json, encoding="utf-8")
    for again in (
        Vocabulary.from_json(words.json),
        Vocabulary.read(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(words)),
    ):
        assert again.json == words.json
        assert again.encode("a robin") == words.encode("a robin")


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="This is not a vocabulary"):
        Vocabulary.from_json("{}")
    with pytest.raises(UserError, match=r"no token \[UNK\], \[START\], \[END\]"):
        Vocabulary(Tokenizer(models.WordLevel({PAD: 0}, unk_token=PAD)))
    with pytest.raises(UserError, match=r"Can't read the vocabulary .*none.json"):
        Vocabulary.read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"Can't read the vocabulary .*bytes.json"):
        Vocabulary.read(tmp_path / "bytes.json")
