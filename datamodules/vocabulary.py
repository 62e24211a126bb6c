"""The words of captions: a vocabulary of the tokenizers library, trained on captions or loaded.

A vocabulary has four special tokens: padding, an unknown word, the start and the end of a text.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from datamodules.reading import printable
from vit.foundation import UserError

# Its threads don't survive the fork of a reading process, and it prints a warning each time; captions are short.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"
SPECIAL = (PAD, UNKNOWN, START, END)

_WORD = r"\w+(?:['’-]\w+)*|[^\w\s]"  # "owl's" and "red-billed" are one word; so is each punctuation mark


class Vocabulary:
    """Captions to ids, and back.

    Args:
        tokenizer: a tokenizer of the tokenizers library, with the four special tokens.

    Raises:
        UserError: when it lacks one of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.get_vocab()
        if lacking := [token for token in SPECIAL if token not in ids]:
            raise UserError(
                f"The vocabulary has no token {', '.join(lacking)}.\nIt needs {', '.join(SPECIAL)}. Without a "
                "vocabulary, a new one is trained on the captions."
            )
        self.tokenizer = tokenizer
        self.pad, self.unknown, self.start, self.end = (ids[token] for token in SPECIAL)

    @classmethod
    def train(cls, captions: Iterable[str], *, size: int = 8192) -> "Vocabulary":
        """A vocabulary of the words of captions, in lower case; punctuation marks count as words.

        Args:
            size: maximum number of tokens, including the special ones; the most common words are kept.
        """
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
        tokenizer.decoder = decoders.WordPiece(cleanup=True)  # "a robin , over water" -> "a robin, over water"
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """A vocabulary from the text of `json`, or of any tokenizer.json of the library with the special tokens.

        Raises:
            UserError: for anything else.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"This is not a vocabulary: {str(error).splitlines()[0][:200]}") from None
        return cls(tokenizer)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """A vocabulary from a file, such as the tokenizer.json of a model folder.

        Raises:
            UserError: when it can't be read, or is not a vocabulary.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(f"Can't read the vocabulary {printable(path)}: {error}") from None

    @property
    def json(self) -> str:
        """The whole vocabulary as text."""
        return self.tokenizer.to_str()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption, from its start token to its end token."""
        return [self.start, *self.tokenizer.encode(caption, add_special_tokens=False).ids, self.end]

    def words(self, ids: Sequence[int]) -> list[str]:
        """The words and punctuation marks of ids, without special tokens except [UNK]."""
        left_out = (self.pad, self.start, self.end)
        return [str(self.tokenizer.id_to_token(number)) for number in ids if number not in left_out]

    def decode(self, ids: Sequence[int]) -> str:
        """The caption of ids, without special tokens except [UNK]."""
        words = [number for number in ids if number not in (self.pad, self.start, self.end)]
        return self.tokenizer.decode(words, skip_special_tokens=False)
