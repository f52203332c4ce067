"""Text to token ids and back: characters, bytes, and byte-level BPE (GPT-2's, or trained on the corpus).

A tokenizer has a vocabulary, which is a table of the bytes that each id stands for, and a way to cut text
into ids. It is saved as `tokenizer.json`, in the format of Hugging Face's `tokenizers`, beside the shards,
the model and its exports. GPT-2's kind can also be read from transformers' older vocab.json and merges.txt.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.reading import read_text
from pipeline.corpus.fetch import fetch
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizer_json import (
    END_OF_TEXT,
    bytes_json,
    characters_json,
    kind_of,
    printable_bytes,
    special_tokens,
)

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")  # older models of transformers lack tokenizer.json

# How GPT-2 cuts text into words before merging bytes (Radford et al. 2019, section 2.2).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
REMEDY = "if a stage made it, remove its folder and run `dvc repro`, else copy it again"
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


class Tokenizer(ABC):
    """Turns text into ids and back. `vocabulary[i]` is the UTF-8 bytes of id i, empty for end-of-text."""

    vocabulary: list[bytes]
    end_of_text: int | None

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id, int64 (vocab_size,); they convert nats per token into bits per byte."""
        return np.array([len(token) for token in self.vocabulary], dtype=np.int64)

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether each id stands for the same bytes in both tokenizers."""
        return (self.vocabulary, self.end_of_text) == (other.vocabulary, other.end_of_text)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of plain text, uint32 (T,). Raises UserError for a character outside the vocabulary."""

    def encode_prompt(self, text: str) -> np.ndarray:
        """Like `encode`, but `<|endoftext|>` becomes the end-of-text id if the vocabulary has one.

        Also raises UserError for lone surrogates, into which Python turns bytes of a command line that are
        not UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"not UTF-8 at position {error.start}; remove {text[error.start]!r}") from None
        if self.end_of_text is None:
            return self.encode(text)
        ids: list[np.ndarray] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            ids += [np.array([self.end_of_text], dtype=np.uint32)] if number else []
            ids += [self.encode(part)] if part else []
        return np.concatenate(ids) if ids else np.empty(0, dtype=np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.vocabulary[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (such as half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abstractmethod
    def to_json(self) -> str:
        """The content of `tokenizer.json` (see pipeline/tokens/tokenizer_json.py)."""

    def save(self, folder: Path) -> None:
        write_text(folder / TOKENIZER_FILE, self.to_json())


class CharTokenizer(Tokenizer):
    """One id per distinct character of the corpus, in code point order."""

    def __init__(self, characters: Iterable[str], end_of_text: bool) -> None:
        self.characters = sorted(set(characters))
        self.vocabulary = [character.encode() for character in self.characters] + [b""] * end_of_text
        self.end_of_text = len(self.characters) if end_of_text else None
        self._code_points = np.array([ord(character) for character in self.characters], dtype=np.uint32)

    def encode(self, text: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = np.minimum(np.searchsorted(self._code_points, code_points), len(self._code_points) - 1)
        unknown = self._code_points[ids] != code_points
        if unknown.any():
            position = int(unknown.argmax())
            character = text[position]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}, position {position}) is not in the "
                f"vocabulary of {len(self.characters)}; remove it or train with another tokenizer.name"
            )
        return ids.astype(np.uint32)

    def to_json(self) -> str:
        return characters_json(self.characters, end_of_text=self.end_of_text is not None)


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8."""

    def __init__(self, end_of_text: bool) -> None:
        self.vocabulary = [bytes([byte]) for byte in range(256)] + [b""] * end_of_text
        self.end_of_text = 256 if end_of_text else None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def to_json(self) -> str:
        return bytes_json(end_of_text=self.end_of_text is not None)


class BPETokenizer(Tokenizer):
    """Byte-level BPE in GPT-2's form, from a `tokenizer.json` of Hugging Face's `tokenizers`.

    tiktoken does the encoding: it gives the same ids as `tokenizers`, several times faster.
    """

    def __init__(self, tokenizer_json: str) -> None:
        import tiktoken

        self._json = tokenizer_json
        values = json.loads(tokenizer_json)
        byte_of = {character: byte for byte, character in enumerate(printable_bytes())}
        specials = special_tokens(values)
        ranks = {
            bytes(byte_of[character] for character in token): i
            for token, i in values["model"]["vocab"].items()
            if token not in specials  # `vocab` may list special tokens as well
        }
        by_id = {i: token for token, i in ranks.items()} | {i: b"" for i in specials.values()}
        self.vocabulary = [by_id[i] for i in range(len(by_id))]
        self.end_of_text = specials.get(END_OF_TEXT)
        self._encoding = tiktoken.Encoding(
            "gpt-pipeline", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=specials
        )

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())

    def to_json(self) -> str:
        return self._json


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`: one of ours, or one of GPT-2's kind saved by transformers.

    Raises UserError if there is none, if it is damaged, or if it is of another kind.
    """
    path = folder / TOKENIZER_FILE
    try:
        if not path.exists() and all((folder / name).exists() for name in VOCABULARY_FILES):
            path = folder / VOCABULARY_FILES[0]
            return _from_text(_from_vocabulary_files(folder))
        return _from_text(read_text(path, "run `dvc repro`, or name a saved model's folder", REMEDY))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; {REMEDY}") from None


def _from_text(tokenizer_json: str) -> Tokenizer:
    values = json.loads(tokenizer_json)
    kind, has_end = kind_of(values), END_OF_TEXT in special_tokens(values)
    if kind == "char":
        return CharTokenizer(values["model"]["vocab"].keys() - {END_OF_TEXT}, has_end)
    if kind == "byte":
        return ByteTokenizer(has_end)
    return BPETokenizer(tokenizer_json)


def _from_vocabulary_files(folder: Path) -> str:
    """Convert vocab.json and merges.txt in `folder` to the text of a tokenizer.json."""
    vocabulary, merges = (read_text(folder / name) for name in VOCABULARY_FILES)
    try:
        tokenizer = _byte_level_bpe(json.loads(vocabulary), _merges(merges))
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise ValueError(str(error)) from None
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    text: str = tokenizer.to_str()
    return text


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's own BPE with 50,257 ids. Its two files are downloaded once per machine and verified."""
    from platformdirs import user_cache_path

    cache = user_cache_path("gpt-pipeline") / "gpt2"
    files = {name: fetch(GPT2_URL + name, sha256, cache) for name, sha256 in GPT2_FILES.items()}
    vocab = json.loads(files["encoder.json"].read_text(encoding="utf-8"))
    end_of_text = vocab.pop(END_OF_TEXT)
    tokenizer = _byte_level_bpe(vocab, _merges(files["vocab.bpe"].read_text(encoding="utf-8")))
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.token_to_id(END_OF_TEXT) == end_of_text
    return BPETokenizer(tokenizer.to_str())


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learn a byte-level BPE of at most `vocab_size` ids from `texts`; the last id is end-of-text."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = _byte_level_bpe()
    trainer = BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return BPETokenizer(tokenizer.to_str())


def _byte_level_bpe(vocab: Any = None, merges: Any = None) -> Any:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer: Any = HFTokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(text: str) -> list[tuple[str, ...]]:
    """The pairs in the text of merges.txt or vocab.bpe, without its version line."""
    lines = text.splitlines()
    return [tuple(line.split()) for line in lines[lines[0].startswith("#version") :] if line]
