"""The prompt of a sample, given as text or in a file, as token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.config.errors import UserError, naming
from pipeline.config.reading import read_text
from pipeline.tokens.tokenizers import Tokenizer

LARGEST = 1 << 20  # bytes of a prompt in a file
EMPTY = 'sample.start is empty; give at least one character, such as "\\n"'


def encode_prompt(start: str, tokenizer: Tokenizer) -> tuple[str, np.ndarray]:
    """The prompt's text, and its ids (T,), int64.

    Raises UserError as `read_prompt` does, and for a prompt that cannot be encoded.
    """
    text = read_prompt(start)
    with naming("sample.start"):
        ids = tokenizer.encode_prompt(text)
    if not len(ids):
        raise UserError(EMPTY)
    return text, ids.astype(np.int64)


def read_prompt(start: str) -> str:
    """The prompt's text; `FILE:path` reads it from a file. Raises UserError if that fails or it is empty."""
    text = start
    if start.startswith("FILE:"):
        try:
            text = read_text(Path(start.removeprefix("FILE:")), largest=LARGEST)
        except UserError as error:
            raise UserError(f"sample.start = FILE:{error}") from None
    if not text:
        raise UserError(EMPTY)
    return text
