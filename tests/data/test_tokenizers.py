"""Text survives the way to ids and back, and the ids are those of nanoGPT, `tokenizers` and tiktoken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pipeline.data.tokenizers import (
    END_OF_TEXT,
    GPT2_FILES,
    GPT2_URL,
    TOKENIZER_FILE,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
)
from pipeline.errors import UserError
from tests import tiny

ODD = [
    "",
    " ",
    "  runs   of    spaces  ",
    "\n\n\nlines\n\n  \n indented\n",
    "tabs\t\t and\r\nreturns\r",
    "I'm sure you're what we've said they'll say, as he'd and it's 'tis O'Neil IT'S",
    "naïve e\u0301tude ǅ ﬁn",
    "日本語のテキスト。中文 한국어",
    "😀👩\u200d👩\u200d👧🇪🇪!",
    "x=1234567890; π≈3.14159 ½ ٣ 10,000.00",
    "no\u00a0break ideographic\u3000space\u2028line\u0085next",
    "\x00\x0b\x0c\x1c\x1f\x7f\ufeff",
    "<|endoftext is not |> quite <|",
]
TOKENIZERS = ["char", "byte", "bpe"]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([tiny.text(), *ODD], vocab_size=500)


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest, bpe: BPETokenizer) -> Tokenizer:
    """The tokenizer that the test is parametrized with, as for a corpus of several documents."""
    if request.param == "bpe":
        return bpe
    if request.param == "byte":
        return ByteTokenizer(end_of_text=True)
    return CharTokenizer("".join(ODD) + END_OF_TEXT, end_of_text=True)


def random_texts(number: int) -> Iterator[str]:
    draw = random.Random(0)
    parts = [
        *"abe st'.,!09\n\t\r",
        "  ",
        "\n\n",
        "'s",
        "'ll",
        "the",
        *"é日😀\u0301\u200d\u00a0\u3000\x85\x1c½",
    ]
    for _ in range(number):
        yield "".join(draw.choices(parts, k=draw.randrange(30)))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_any_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in [*ODD, END_OF_TEXT, f"a{END_OF_TEXT}\n"]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.decode_bytes(ids.tolist()) == text.encode()
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    for text, ids in zip(ODD, tokenizer.encode_batch(ODD), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_end_of_text_is_the_last_id_and_stands_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.decode([tokenizer.end_of_text]) == ""
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert np.flatnonzero(tokenizer.token_bytes == 0).tolist() == [tokenizer.end_of_text]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_only_a_prompt_may_hold_the_end_of_text_id(tokenizer: Tokenizer) -> None:
    end = tokenizer.end_of_text
    a, b = tokenizer.encode("a").tolist(), tokenizer.encode(" b").tolist()
    for prompt, ids in (
        ("", []),
        ("a", a),
        (END_OF_TEXT, [end]),
        (f"{END_OF_TEXT}a", [end, *a]),
        (f"a{END_OF_TEXT}{END_OF_TEXT} b{END_OF_TEXT}", [*a, end, end, *b, end]),
    ):
        assert tokenizer.encode_prompt(prompt).tolist() == ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_a_prompt_that_is_not_utf8_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"not UTF-8 at position 1; remove '\\udcff'"):
        tokenizer.encode_prompt("a\udcff")  # how Python shows a program the argument b"a\xff"


@pytest.mark.parametrize("tokenizer", [CharTokenizer(END_OF_TEXT, False), ByteTokenizer(False)])
def test_without_an_end_of_text_id_it_is_text_in_a_prompt_too(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text is None
    assert tokenizer.decode(tokenizer.encode_prompt(END_OF_TEXT)) == END_OF_TEXT


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [TOKENIZER_FILE]
    assert type(loaded) is type(tokenizer)
    assert loaded.to_json() == tokenizer.to_json() == (tmp_path / TOKENIZER_FILE).read_bytes().decode()
    assert (loaded.vocabulary, loaded.end_of_text) == (tokenizer.vocabulary, tokenizer.end_of_text)
    for text in ODD:
        np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab", False), ByteTokenizer(False)])
def test_a_saved_tokenizer_without_end_of_text_has_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).end_of_text is None


def test_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / TOKENIZER_FILE
    with pytest.raises(UserError, match="tokenizer.json: no such file"):
        load_tokenizer(tmp_path)
    for content in (b"", b'{"type": "char", "charac', b'{"type": "char"}', b'{"model": {}}', b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokenizer.json: damaged"):
            load_tokenizer(tmp_path)


def test_half_a_character_becomes_a_replacement_character() -> None:
    assert ByteTokenizer(end_of_text=False).decode([*"aé".encode()][:-1]) == "a\ufffd"


def test_char_ids_are_nanogpts() -> None:
    text = tiny.text() + "".join(ODD)
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    tokenizer = CharTokenizer(text, end_of_text=False)
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(text).tolist() == [stoi[ch] for ch in text]


@pytest.mark.parametrize("unknown", ["\x00", "é", "z", "\U0010ffff"])
def test_unknown_character_is_named(unknown: str) -> None:
    tokenizer = CharTokenizer("bcd\n", end_of_text=True)
    with pytest.raises(UserError) as error:
        tokenizer.encode(f"bc{unknown}d")
    for part in (repr(unknown), f"U+{ord(unknown):04X}", "position 2"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_byte_ids_are_utf8() -> None:
    assert ByteTokenizer(end_of_text=True).encode("aé😀").tolist() == [97, 195, 169, 240, 159, 152, 128]
    assert (ByteTokenizer(True).vocab_size, ByteTokenizer(False).vocab_size) == (257, 256)


def test_bpe_encodes_as_hugging_faces_tokenizers(bpe: BPETokenizer) -> None:
    reference = tokenizers.Tokenizer.from_str(bpe.to_json())
    assert reference.get_vocab_size() == bpe.vocab_size
    assert reference.token_to_id(END_OF_TEXT) == bpe.end_of_text
    for text in [*ODD, tiny.text(), *random_texts(3000)]:
        assert bpe.encode(text).tolist() == reference.encode(text).ids
        assert reference.decode(bpe.encode(text).tolist()) == text


def test_bpe_learns_what_is_frequent(bpe: BPETokenizer) -> None:
    assert bpe.vocab_size <= 500
    assert set(bpe.vocabulary) >= {bytes([byte]) for byte in range(256)} | {b" sails", b"under"}
    assert len(bpe.encode(tiny.text())) < len(tiny.text()) / 3


def test_bpe_of_the_smallest_vocabulary_is_bytes() -> None:
    tokenizer = train_bpe([tiny.text()], vocab_size=257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("née")) == 4


def test_training_bpe_twice_gives_the_same_tokenizer(bpe: BPETokenizer) -> None:
    assert train_bpe([tiny.text(), *ODD], vocab_size=500).to_json() == bpe.to_json()


@pytest.mark.mirror
def test_gpt2_gives_the_published_ids(
    mirrored: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in GPT2_FILES:
        mirrored(GPT2_URL + name)
    tokenizer = gpt2_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50_257, 50_256)
    for text, ids in (
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        ("hello world", [31373, 995]),
        ("tiktoken is great!", [83, 1134, 30001, 318, 1049, 0]),
    ):
        assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.encode_prompt(f"hello world{END_OF_TEXT}").tolist() == [31373, 995, 50256]
    assert 50256 not in tokenizer.encode(END_OF_TEXT)

    reference = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in [*ODD, *random_texts(300)]:
        assert tokenizer.encode(text).tolist() == reference.encode(text).ids

    monkeypatch.setenv("PIPELINE_MIRROR", str(tmp_path / "gone"))  # looking for the files there would fail
    assert gpt2_tokenizer().to_json() == tokenizer.to_json()
