"""AutoTokenizer loads what is exported, gives our ids and gives back our text; and so do we."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.storage.files import write_json
from pipeline.tokens.tokenizers import (
    END_OF_TEXT,
    GPT2_FILES,
    GPT2_URL,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
)
from pipeline.weights.gpt2 import TOKENIZER_CONFIG_FILE, tokenizer_config
from tests import tiny
from tests.tokens.test_tokenizers import ODD, random_texts

TEXTS = [*ODD, tiny.text()[:1000], " , . don't  stop !", *random_texts(300)]
CHARACTERS = "".join(TEXTS) + END_OF_TEXT
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer(CHARACTERS, end_of_text=True),
    "char of one document": lambda: CharTokenizer(CHARACTERS, end_of_text=False),
    "byte": lambda: ByteTokenizer(end_of_text=True),
    "byte of one document": lambda: ByteTokenizer(end_of_text=False),
    "bpe": lambda: train_bpe([tiny.text(), *ODD], vocab_size=400),
    "bpe of bytes": lambda: train_bpe([tiny.text()], vocab_size=257),
}


def exported(tokenizer: Tokenizer, folder: Path) -> Any:
    """The tokenizer as AutoTokenizer loads it beside a GPT-2."""
    write_json(folder / "config.json", {"model_type": "gpt2", "bos_token_id": None, "eos_token_id": None})
    write_json(folder / TOKENIZER_CONFIG_FILE, tokenizer_config(tokenizer, block_size=1024))
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def check(tokenizer: Tokenizer, theirs: Any) -> None:
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 1024
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.end_of_text
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text
    prompt = f"{END_OF_TEXT}the sea{END_OF_TEXT}\n"
    assert theirs(prompt)["input_ids"] == tokenizer.encode_prompt(prompt).tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_gives_our_ids_and_our_text(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    check(tokenizer, exported(tokenizer, tmp_path))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_export_is_loaded_as_what_it_was(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    theirs = exported(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.to_json() == tokenizer.to_json()

    theirs.save_pretrained(tmp_path / "again")  # as after finetuning there
    again = load_tokenizer(tmp_path / "again")
    assert type(again) is type(tokenizer)
    assert (again.vocabulary, again.end_of_text) == (tokenizer.vocabulary, tokenizer.end_of_text)


@pytest.mark.mirror
def test_gpt2(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    for name in GPT2_FILES:
        mirrored(GPT2_URL + name)
    check(gpt2_tokenizer(), exported(gpt2_tokenizer(), tmp_path))


def test_the_config_names_no_code_and_cleans_nothing_up(tmp_path: Path) -> None:
    values = tokenizer_config(TOKENIZERS["char"](), 8)
    assert values["clean_up_tokenization_spaces"] is False
    assert "auto_map" not in values
