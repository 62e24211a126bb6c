"""The words of captions: trained on captions, or loaded, by the tokenizers library.

A vocabulary has four tokens that are no words: for nothing, for an unknown word, before a text and after it.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from datamodules.reading import printable
from vit.foundation import UserError

# Its threads do not outlive the fork of a reading process, and it says so at each; captions are short.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"
SPECIAL = (PAD, UNKNOWN, START, END)

_WORD = r"\w+(?:['’-]\w+)*|[^\w\s]"  # "owl's" and "red-billed" are one word; a sign is one by itself


class Vocabulary:
    """Captions to ids, and back.

    Args:
        tokenizer: of the tokenizers library, with the four special tokens.

    Raises:
        UserError: when it lacks one of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.get_vocab()
        if lacking := [token for token in SPECIAL if token not in ids]:
            raise UserError(
                f"The vocabulary has no token {', '.join(lacking)}.\nIt needs {', '.join(SPECIAL)}; train a new one on "
                "the captions by giving none."
            )
        self.tokenizer = tokenizer
        self.pad, self.unknown, self.start, self.end = (ids[token] for token in SPECIAL)

    @classmethod
    def train(cls, captions: Iterable[str], *, size: int = 8192) -> "Vocabulary":
        """The words of some captions, in small letters; signs count as words.

        Args:
            size: most tokens, the special ones counted; the commonest words are kept.
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
        """What `json` gave, or any tokenizer.json of the library that has the special tokens.

        Raises:
            UserError: for anything else.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"This is no vocabulary: {str(error).splitlines()[0][:200]}") from None
        return cls(tokenizer)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """From a file, such as the tokenizer.json of a model folder.

        Raises:
            UserError: when it can't be read, or holds no vocabulary.
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
        """The words and signs of ids; special tokens are left out, but for unknown words."""
        left_out = (self.pad, self.start, self.end)
        return [str(self.tokenizer.id_to_token(number)) for number in ids if number not in left_out]

    def decode(self, ids: Sequence[int]) -> str:
        """The caption of ids; special tokens are left out, but for unknown words."""
        words = [number for number in ids if number not in (self.pad, self.start, self.end)]
        return self.tokenizer.decode(words, skip_special_tokens=False)
