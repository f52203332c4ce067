"""Our tokenizers as transformers': what AutoTokenizer loads, without code of its own, and gives our ids."""

from __future__ import annotations

import json
from typing import Any

from pipeline.tokens.tokenizer_json import END_OF_TEXT, printable_bytes
from pipeline.tokens.tokenizers import TOKENIZER_FILE, ByteTokenizer, CharTokenizer, Tokenizer

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def to_transformers(tokenizer: Tokenizer, block_size: int) -> dict[str, str]:
    """The content of `tokenizer.json` and `tokenizer_config.json`, by file name.

    `<|endoftext|>`, where there is one, begins and ends a text. A character that a `char` tokenizer does not
    know, an error here, is left out there.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # GPT2Tokenizer would cut characters into words first
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return {
        TOKENIZER_FILE: _tokenizer_json(tokenizer),
        TOKENIZER_CONFIG_FILE: json.dumps(config, indent=2) + "\n",
    }


def _tokenizer_json(tokenizer: Tokenizer) -> str:
    from tokenizers import decoders, pre_tokenizers

    if isinstance(tokenizer, CharTokenizer):
        return _without_merges(tokenizer.characters, tokenizer.end_of_text, None, decoders.Fuse())
    if isinstance(tokenizer, ByteTokenizer):
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return _without_merges(printable_bytes(), tokenizer.end_of_text, whole, decoders.ByteLevel())
    return tokenizer.to_json()


def _without_merges(tokens: list[str], end_of_text: int | None, before: Any, decoder: Any) -> str:
    """A BPE that merges nothing: each of `tokens` has its index for an id, and <|endoftext|> the next one."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models

    tokenizer: Any = HFTokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    if before is not None:
        tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoder
    if end_of_text is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
        assert tokenizer.token_to_id(END_OF_TEXT) == end_of_text
    text: str = tokenizer.to_str()
    return text
