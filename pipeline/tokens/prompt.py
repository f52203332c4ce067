"""The prompt of a sample, given as text or in a file, as token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.config.errors import UserError
from pipeline.tokens.tokenizers import Tokenizer


def encode_prompt(start: str, tokenizer: Tokenizer) -> tuple[str, np.ndarray]:
    """The prompt's text, and its ids (T,), int64. `FILE:path` reads the text from a file.

    Raises UserError if the file cannot be read, and for a prompt that is empty or cannot be encoded.
    """
    if start.startswith("FILE:"):
        path = Path(start.removeprefix("FILE:"))
        try:
            start = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"sample.start = FILE:{path}: {error.strerror}; name another file") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"sample.start = FILE:{path}: not UTF-8 at byte {error.start}; convert the file"
            ) from None
    try:
        ids = tokenizer.encode_prompt(start)
    except UserError as error:
        raise UserError(f"sample.start: {error}") from None
    if not len(ids):
        raise UserError('sample.start is empty; give at least one character, such as "\\n"')
    return start, ids.astype(np.int64)
