"""The prompt is text or a file of it; what cannot be encoded is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.tokens.prompt import encode_prompt
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer

CHARACTERS = CharTokenizer("abc\n", end_of_text=False)


def test_prompt_from_text_and_from_file(tmp_path: Path) -> None:
    text, ids = encode_prompt("cab", CHARACTERS)
    assert (text, ids.tolist()) == ("cab", [3, 1, 2]) and ids.dtype == np.int64
    path = tmp_path / "prompt.txt"
    path.write_text("abba\n")
    text, ids = encode_prompt(f"FILE:{path}", CHARACTERS)
    assert (text, ids.tolist()) == ("abba\n", [1, 2, 2, 1, 0])


def test_prompt_may_hold_the_end_of_text() -> None:
    text, ids = encode_prompt("<|endoftext|>b", CharTokenizer("abc", end_of_text=True))
    assert (text, ids.tolist()) == ("<|endoftext|>b", [3, 1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"abx", "sample.start: character 'x' (U+0078, position 2) is not in the vocabulary"),
        (b"", 'sample.start is empty; give at least one character, such as "\\n"'),
        (b"ab\xff", "sample.start = FILE:"),
        (None, "sample.start = FILE:"),
    ],
)
def test_bad_prompt_gets_one_line(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        encode_prompt(f"FILE:{path}", CHARACTERS)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokenizer", [CHARACTERS, ByteTokenizer(end_of_text=True)])
def test_prompt_that_is_no_unicode_gets_one_line(tokenizer: Tokenizer) -> None:
    """A byte on the command line that is not UTF-8 arrives as half a character."""
    with pytest.raises(UserError, match="^sample.start: "):
        encode_prompt("ab\udcff", tokenizer)
