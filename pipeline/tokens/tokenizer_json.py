"""`tokenizer.json`, the format of Hugging Face's `tokenizers`: writing ours, and telling which can be read.

There are three kinds: GPT-2's byte-level BPE, and bytes and characters, which are written as BPEs without
merges.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pipeline.config.errors import UserError

END_OF_TEXT = "<|endoftext|>"
Kind = Literal["bpe", "byte", "char"]


def kind_of(values: dict[str, Any]) -> Kind:
    """The kind of tokenizer that gives the same ids as the tokenizer.json whose content is `values`.

    Raises UserError with the reason if there is none, and KeyError, TypeError or AttributeError if `values`
    is not laid out as a tokenizer.json.
    """
    model, pre_tokenizer = values["model"], values.get("pre_tokenizer") or {"type": None}
    _refuse_if(model.get("type", "BPE") != "BPE", f"its model is {model.get('type')}, not BPE")
    _refuse_if(values.get("normalizer"), "it changes the text first (normalizer)")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _refuse_if(model.get(name), f"model.{name} is {model.get(name)!r}")
    specials = special_tokens(values)
    plain = {token: i for token, i in model["vocab"].items() if token not in specials}
    ids = sorted([*plain.values(), *specials.values()])
    _refuse_if(not plain, "it has no tokens")
    _refuse_if(ids != list(range(len(ids))), "its ids have gaps or duplicates")

    by_id = sorted(plain, key=lambda token: plain[token])
    end_is_last = set(specials) <= {END_OF_TEXT} and ids[: len(plain)] == sorted(plain.values())
    exported = end_is_last and not model["merges"]
    characters = by_id == sorted(by_id) and all(len(token) == 1 for token in by_id)
    if exported and characters and pre_tokenizer["type"] is None:
        return "char"
    splitter = pre_tokenizer["type"]
    _refuse_if(splitter != "ByteLevel", f"its pre_tokenizer is {splitter}, not ByteLevel")
    _refuse_if(
        pre_tokenizer.get("add_prefix_space", True), "it puts a space before the text (add_prefix_space)"
    )
    if exported and by_id == printable_bytes():
        return "byte"
    _refuse_if(not pre_tokenizer.get("use_regex", True), "it does not cut text into words (use_regex)")
    _check_merges(plain, model["merges"])
    return "bpe"


def characters_json(characters: list[str], end_of_text: bool) -> str:
    """The tokenizer.json in which `characters[n]` has the id n."""
    from tokenizers import decoders

    return _without_merges(characters, None, decoders.Fuse(), end_of_text)


def bytes_json(end_of_text: bool) -> str:
    """The tokenizer.json in which byte n has the id n."""
    from tokenizers import decoders, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _without_merges(printable_bytes(), whole, decoders.ByteLevel(), end_of_text)


def special_tokens(values: dict[str, Any]) -> dict[str, int]:
    """{token: id} of the special tokens. Raises UserError for an added token that is not special."""
    added = values["added_tokens"]
    for token in added:
        _refuse_if(not token.get("special"), f"{token['content']!r} is an added token that is not special")
    return {token["content"]: token["id"] for token in added}


def printable_bytes() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary files.

    A printable Latin-1 character stands for its own byte. U+0100 and up stand for the other bytes, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _without_merges(tokens: list[str], pre_tokenizer: Any, decoder: Any, end_of_text: bool) -> str:
    """A BPE without merges: the id of a token is its index; <|endoftext|>, if asked for, has the last id."""
    from tokenizers import Tokenizer, models

    tokenizer: Any = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    if end_of_text:
        tokenizer.add_special_tokens([END_OF_TEXT])
    text: str = tokenizer.to_str()
    return text


def _check_merges(plain: dict[str, int], merges: list[Any]) -> None:
    """Check that every token is a byte or the result of a merge, and that earlier merges have smaller ids.

    tiktoken merges the two neighbours whose joint token has the smallest id, `tokenizers` applies the
    earliest merge. Their results agree only if the merges are in order of ids. Raises UserError.
    """
    merged = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    possible = {*printable_bytes(), *merged}
    _refuse_if(plain.keys() != possible, "its tokens are not the 256 bytes and the results of its merges")
    ids = [plain[token] for token in merged]
    _refuse_if(any(a >= b for a, b in pairwise(ids)), "its merges are not in order of ids")


def _refuse_if(condition: Any, what: str) -> None:
    if condition:
        raise UserError(f"not a tokenizer of GPT-2's kind: {what}; use a model with a byte-level BPE")
