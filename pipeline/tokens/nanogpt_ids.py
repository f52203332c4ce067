"""nanoGPT's data: token ids in train.bin and val.bin, and in meta.pkl the characters that they stand for.

Without a meta.pkl the ids are GPT-2's. nanoGPT loads meta.pkl with pickle, which runs any code that a file
contains. The reader here only builds dicts, strings and integers, and refuses everything else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file
from pipeline.corpus.sources import IDS_FILES, META_FILE
from pipeline.tokens.tokenizers import END_OF_TEXT, CharTokenizer

DTYPE = np.dtype("<u2")
CHUNK = 1 << 24  # ids in memory at once


def check_folder(folder: Path) -> None:
    """Raise UserError if a folder's .bin files or its meta.pkl cannot be read."""
    for name in IDS_FILES:
        count_ids(folder / name)
    if (folder / META_FILE).exists():
        read_meta(folder / META_FILE)


def count_ids(path: Path) -> int:
    """The number of ids in a .bin file. Raises UserError if it is missing, truncated or holds only one."""
    size = check_file(path, missing="run `dvc repro download` first")
    if size % DTYPE.itemsize:
        raise UserError(f"{path}: {size} bytes are not a whole number of 16-bit ids; copy it again")
    if size < 2 * DTYPE.itemsize:
        raise UserError(f"{path}: {size} bytes leave no token to predict; put at least two ids into it")
    return size // DTYPE.itemsize


def read_ids(path: Path, vocab_size: int) -> Iterator[np.ndarray]:
    """Yield a .bin file's ids, uint16, in pieces. Raises UserError for an id outside the vocabulary."""
    count_ids(path)
    ids = np.memmap(path, dtype=DTYPE, mode="r")
    for start in range(0, len(ids), CHUNK):
        piece = ids[start : start + CHUNK]
        outside = piece >= vocab_size
        if outside.any():
            position = int(outside.argmax())
            raise UserError(
                f"{path}: id {piece[position]} at position {start + position} is outside the vocabulary of "
                f"{vocab_size}; put the right {META_FILE} into nanoGPT's folder and run `make train-on` again"
            )
        yield piece


def read_meta(path: Path) -> CharTokenizer:
    """Read the characters in a meta.pkl as a tokenizer with the same ids. Nothing in the file is executed.

    Raises UserError if the file cannot be read, if it holds anything but dicts, strings and integers, and if
    its `stoi`, `itos` and `vocab_size` are not those of characters in code point order.
    """
    meta = _unpickle(path)
    stoi, itos, vocab_size = (meta.get(name) for name in ("stoi", "itos", "vocab_size"))
    if not isinstance(stoi, dict) or not isinstance(itos, dict):
        raise UserError(f"{path}: no stoi and itos; use a {META_FILE} that lists characters")
    names: list[Any] = [itos.get(number) for number in range(len(itos))]
    if stoi != {name: number for number, name in enumerate(names)} or not vocab_size == len(names) > 0:
        raise UserError(f"{path}: itos, stoi and vocab_size contradict each other; make the data again")
    characters = names[:-1] if names[-1:] == [END_OF_TEXT] else names
    for character in characters:
        if not isinstance(character, str) or len(character) != 1 or "\ud800" <= character <= "\udfff":
            raise UserError(f"{path}: {character!r} is not a character; use a {META_FILE} of characters")
    if characters != sorted(characters):
        raise UserError(f"{path}: ids are not in code point order; sort the characters, as nanoGPT does")
    return CharTokenizer(characters, end_of_text=len(characters) < len(names))


def write_meta(tokenizer: CharTokenizer, path: Path) -> None:
    """Write the meta.pkl with which nanoGPT encodes and decodes these ids. It lists end-of-text by name."""
    names = [*tokenizer.characters, *[END_OF_TEXT] * (tokenizer.end_of_text is not None)]
    meta = {
        "vocab_size": len(names),
        "itos": dict(enumerate(names)),
        "stoi": {name: number for number, name in enumerate(names)},
    }
    with path.open("wb") as file:
        pickle.dump(meta, file)


class _Refused(Exception):
    """A pickle asks for something that is not plain data."""


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles plain data only. To run code, a pickle must look it up by name, and that is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(repr(f"{module}.{name}"))

    def persistent_load(self, identifier: Any) -> NoReturn:
        raise _Refused(f"the persistent id {identifier!r}")


def _unpickle(path: Path) -> dict[int | str, Any]:
    """Read a pickled dict of strings, integers and dicts of these. Raises UserError for anything else."""
    plain = "only dicts, strings and integers are read"
    check_file(path, missing=f"name a {META_FILE} written by nanoGPT")
    try:
        with path.open("rb") as file:
            meta = _PlainUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a {META_FILE} written by nanoGPT") from None
    except _Refused as refused:
        raise UserError(
            f"{path}: refused, it asks for {refused}; {plain}, and nothing was executed"
        ) from None
    except Exception:  # a damaged pickle can raise anything
        raise UserError(f"{path}: not a pickle, or a damaged one; copy it again") from None
    if type(meta) is not dict:
        raise UserError(f"{path}: refused, it holds a {type(meta).__name__}; {plain}")
    for key, value in meta.items():
        leaves = [*value, *value.values()] if type(value) is dict else [value]
        for leaf in (key, *leaves):
            if type(leaf) not in (str, int):
                raise UserError(f"{path}: refused, {key!r} holds a {type(leaf).__name__}; {plain}")
    return meta
