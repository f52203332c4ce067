"""Text survives the way to ids and back, and the ids are those of nanoGPT, `tokenizers` and tiktoken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from transformers import GPT2Tokenizer

from pipeline.config.errors import UserError
from pipeline.tokens.tokenizers import (
    END_OF_TEXT,
    GPT2_FILES,
    GPT2_URL,
    TOKENIZER_FILE,
    VOCABULARY_FILES,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
)
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
        with pytest.raises(UserError, match="tokenizer.json: (damaged|not UTF-8)"):
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


@pytest.mark.mirror
def test_the_hubs_gpt2_is_gpt2(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    """Its tokenizer.json is of an early version: merges are strings, and defaults are left out."""
    merges, vocabulary = (mirrored(GPT2_URL + name).read_text(encoding="utf-8") for name in GPT2_FILES)
    values = {
        "added_tokens": [{"id": 50256, "special": True, "content": END_OF_TEXT, "normalized": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "vocab": json.loads(vocabulary),
            "merges": merges.splitlines()[1:],
        },
    }
    for name, content in (("new", json.dumps(values)), ("old", "")):
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / TOKENIZER_FILE).write_text(content, encoding="utf-8")
        else:
            for file, text in zip(VOCABULARY_FILES, (vocabulary, merges), strict=True):
                (folder / file).write_text(text, encoding="utf-8")
        loaded, expected = load_tokenizer(folder), gpt2_tokenizer()
        assert loaded.vocabulary == expected.vocabulary
        assert loaded.end_of_text == expected.end_of_text
        for text in ODD:
            np.testing.assert_array_equal(loaded.encode(text), expected.encode(text))


def vocabulary_and_merges(bpe: BPETokenizer) -> tuple[dict[str, int], Any]:
    model = json.loads(bpe.to_json())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("with_json", [True, False])
def test_what_transformers_saves_has_the_ids_it_has_there(
    bpe: BPETokenizer, tmp_path: Path, with_json: bool, first: bool
) -> None:
    vocab, merges = vocabulary_and_merges(bpe)
    if first:  # not a place where we would put <|endoftext|>
        vocab = {END_OF_TEXT: 0} | {token: i + 1 for token, i in vocab.items()}
    else:
        vocab = vocab | {END_OF_TEXT: len(vocab)}
    theirs = GPT2Tokenizer(vocab=vocab, merges=merges)
    if with_json:
        theirs.save_pretrained(tmp_path)
        assert (tmp_path / TOKENIZER_FILE).exists()
    else:
        theirs.backend_tokenizer.model.save(str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["merges.txt", "vocab.json"])
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, BPETokenizer)
    assert (loaded.vocab_size, loaded.end_of_text) == (len(theirs), theirs.eos_token_id)
    for text in [*ODD, *random_texts(300)]:
        assert loaded.encode(text).tolist() == theirs(text)["input_ids"]
        assert (
            loaded.encode_prompt(f"{text}{END_OF_TEXT}").tolist()
            == theirs(f"{text}{END_OF_TEXT}")["input_ids"]
        )
        assert loaded.decode(loaded.encode(text).tolist()) == text


def test_without_end_of_text_there_is_none(bpe: BPETokenizer, tmp_path: Path) -> None:
    values = json.loads(bpe.to_json())
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(values | {"added_tokens": []}))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.end_of_text, loaded.vocab_size) == (None, bpe.vocab_size - 1)
    assert loaded.decode(loaded.encode_prompt(f"a{END_OF_TEXT}").tolist()) == f"a{END_OF_TEXT}"


def test_other_special_tokens_stand_for_no_bytes(bpe: BPETokenizer, tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer.from_str(bpe.to_json())
    theirs.add_special_tokens(["<|pad|>"])
    theirs.save(str(tmp_path / TOKENIZER_FILE))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.end_of_text) == (bpe.vocab_size + 1, bpe.end_of_text)
    assert loaded.decode([bpe.vocab_size]) == ""
    assert bpe.vocab_size not in loaded.encode("<|pad|>")


def changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Sets `pre_tokenizer__use_regex` and the like in a tokenizer.json."""

    def change(values: dict[str, Any]) -> None:
        for name, value in changes.items():
            *parents, key = name.split("__")
            inside = values
            for parent in parents:
                inside = inside[parent]
            inside[key] = value

    return change


def swap_merges(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]


def drop_merge(values: dict[str, Any]) -> None:
    values["model"]["merges"].pop()


def add_plain_token(values: dict[str, Any]) -> None:
    values["added_tokens"].append({"content": "sails", "id": 500, "special": False})


def leave_hole(values: dict[str, Any]) -> None:
    values["added_tokens"][0]["id"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(model__type="Unigram"), "its model is Unigram, not BPE"),
        (changed(normalizer={"type": "NFC"}), "it changes the text first"),
        (changed(model__dropout=0.1), "model.dropout is 0.1"),
        (changed(model__end_of_word_suffix="</w>"), "model.end_of_word_suffix is '</w>'"),
        (changed(pre_tokenizer={"type": "Metaspace"}), "its pre_tokenizer is Metaspace, not ByteLevel"),
        (changed(pre_tokenizer=None), "its pre_tokenizer is None, not ByteLevel"),
        (changed(pre_tokenizer__add_prefix_space=True), "it puts a space before the text"),
        (changed(pre_tokenizer__use_regex=False), "it does not cut text into words"),
        (swap_merges, "its merges are not in order of ids"),
        (drop_merge, "its tokens are not the 256 bytes and the results of its merges"),
        (add_plain_token, "'sails' is an added token that is not special"),
        (leave_hole, "its ids have gaps"),
    ],
)
def test_another_kind_of_tokenizer_is_named(
    bpe: BPETokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    values = json.loads(bpe.to_json())
    change(values)
    path = tmp_path / TOKENIZER_FILE
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{path}: not a tokenizer of GPT-2's kind: ")
    assert "\n" not in str(error.value)


def test_damaged_vocabulary_files_are_named(bpe: BPETokenizer, tmp_path: Path) -> None:
    vocab, _ = vocabulary_and_merges(bpe)
    for vocabulary, merges in (("{", ""), (json.dumps(vocab), ""), (json.dumps(vocab), "q zz\nzz q\n")):
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(UserError, match="vocab.json: (damaged|not a tokenizer of GPT-2's kind)"):
            load_tokenizer(tmp_path)
