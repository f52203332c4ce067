"""What holds for any input: parameters, manifests, shards and prompts are read as written, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.config.errors import UserError, one_line
from pipeline.config.params import PARAMS_FILE, Params, load_params
from pipeline.config.params_yaml import params_yaml, yaml_value
from pipeline.config.presets import differences, overlay
from pipeline.config.reading import parse_json, parse_yaml, read_json, read_text
from pipeline.config.validation import known_names, read_yaml, validate
from pipeline.corpus.sources import TailSplit, load_spec, write_spec
from pipeline.serve.sampling import TextStream
from pipeline.storage.checksums import (
    MANIFEST_FILE,
    HashCache,
    check_recorded,
    damage,
    read_manifest,
    save_folder,
    sha256_file,
    write_record,
)
from pipeline.tokens.prompt import encode_prompt
from pipeline.tokens.shards import (
    Manifest,
    ShardWriter,
    SplitManifest,
    SplitName,
    load_manifest,
    open_split,
    token_dtype,
)
from pipeline.tokens.tokenizers import (
    END_OF_TEXT,
    TOKENIZER_FILE,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)
from pipeline.tokens.write_shards import tokenize
from tests import tiny

DEFAULT = tiny.params_yaml()
PARAMS = tiny.params()
NAMES = [name for name in known_names(Params) if "." in name]
SCHEMA = Params.model_json_schema()

LINES = (
    "é\n\"':#{[*&!|>-?% \t\0\x7f\x85\u2028\ufeff\U0001f600"  # characters that formats treat in a special way
)
TEXTS = st.text() | st.text(LINES)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**63) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
DEEP = b"[" * 100_000
YAML_PARTS = [
    *("a: ", "- ", "\n", "  ", "? ", "|\n", ">\n", "\\u", "<<: "),
    *("---\n", "...\n", "%YAML 1.1\n", "%TAG ! tag:x,1:\n"),
    *("1", "0x", "0o9", "1e999", ".inf", "2001-02-30", "2001-01-01 25:61:61", "1:60", "true", "&x ", "*x"),
    *"[]{},'\"#~\t\0=",
    "!!python/name:os.system ",
    *("!!bool ", "!!int ", "!!float ", "!!null ", "!!binary ", "!!timestamp ", "!!str "),
    *("!!set ", "!!omap ", "!!pairs ", "!!map ", "!!seq "),
]
YAML = st.lists(st.sampled_from(YAML_PARTS) | TEXTS, max_size=10).map("".join)
CONTENTS = st.binary() | YAML.map(str.encode) | VALUES.map(json.dumps).map(str.encode)


@contextmanager
def refused(match: str | None = None) -> Iterator[None]:
    """The block ends with a UserError, which is shown as one line of printable text."""
    with pytest.raises(UserError, match=match) as error:
        yield
    line = one_line(str(error.value))
    assert line.isprintable() and line.encode()


@contextmanager
def or_one_line() -> Iterator[None]:
    """The block ends as it should, or as `refused` says; no other error leaves it."""
    try:
        yield
    except UserError as error:
        with refused():
            raise error


@pytest.fixture(scope="module", autouse=True)
def without_sync() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # none has to survive a power cut
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, which overwrite each other's files."""
    return tmp_path_factory.mktemp("properties")


def placed(values: Any, place: int, new: Any) -> Any:
    """A copy of JSON `values` with `new` in place of a value in it: of the one with the number `place`."""
    places: list[tuple[Any, Any]] = []
    whole = [json.loads(json.dumps(values))]

    def find(parent: Any) -> None:
        for key in parent if isinstance(parent, dict) else range(len(parent)):
            places.append((parent, key))
            if isinstance(parent[key], dict | list):
                find(parent[key])

    find(whole)
    parent, key = places[place % len(places)]
    parent[key] = new
    return whole[0]


def flipped(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position % len(content)] ^= 1 << bit
    return bytes(changed)


BITS = st.integers(0, 7)
PLACES = st.integers(0, 2**16)


# Files that users touch


@given(CONTENTS)
@example(DEEP)
@example(b"!!bool perhaps")
def test_any_bytes_are_text_json_and_yaml_or_one_line(folder: Path, content: bytes) -> None:
    path = folder / "file"
    path.write_bytes(content)
    with or_one_line():
        assert read_text(path).encode() == content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    with or_one_line():
        assert isinstance(read_json(path), dict)
    with or_one_line():
        assert isinstance(read_yaml(path), dict)


@given(VALUES)
def test_json_is_read_back(value: Any) -> None:
    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text


# Parameters


def allowed(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field's JSON schema allows."""
    if "anyOf" in schema:
        return st.one_of([allowed(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    least, most = (
        schema.get(name, schema.get(f"exclusive{name.title()}")) for name in ("minimum", "maximum")
    )
    kinds = {
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers(least, 2**63 - 1 if most is None else most),
        "number": st.floats(least, most, allow_nan=False, allow_infinity=False),
        "string": TEXTS | st.from_regex(schema.get("pattern", r"\A[a-z0-9.-]+(/[a-z0-9.-]+)?\Z")),
    }
    if schema["type"] == "array":
        return st.lists(allowed(schema["items"]), max_size=3)
    return kinds[schema["type"]]


def schema_of(name: str) -> dict[str, Any]:
    section, key = name.split(".")
    found: dict[str, Any] = SCHEMA["$defs"][section.title()]["properties"][key]
    return found


CHANGES = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), allowed(schema_of(name))))


def with_value(params: Params, name: str, value: Any) -> Params:
    section, key = name.split(".")
    values = params.model_dump()
    values[section][key] = value
    return validate(Params, values, PARAMS_FILE)


@given(st.sampled_from(NAMES), VALUES)
def test_any_value_of_a_parameter_is_kept_or_one_line(name: str, value: Any) -> None:
    with or_one_line():
        params = with_value(PARAMS, name, value)
        assert set(differences(PARAMS.model_dump(), params.model_dump())) <= {name}
        section, key = name.split(".")
        assert getattr(getattr(params, section), key) == value


@given(VALUES)
def test_any_value_as_parameters_is_one_line(folder: Path, value: Any) -> None:
    path = folder / "params.yaml"
    path.write_text(json.dumps(value))
    with refused():
        load_params((), path)
    with or_one_line():
        load_params([f"{value}"], path)


@given(st.sampled_from(NAMES), TEXTS | YAML | VALUES.map(str))
def test_any_override_changes_its_parameter_alone_or_is_one_line(name: str, text: str) -> None:
    with or_one_line():
        params = PARAMS.with_overrides([f"{name}={text}"])
        assert set(differences(PARAMS.model_dump(), params.model_dump())) <= {name}


@given(CHANGES)
@example(("sample.start", "\x7f"))
def test_an_override_that_is_written_as_yaml_is_that_value(change: tuple[str, Any]) -> None:
    name, value = change
    with or_one_line():
        assert PARAMS.with_overrides([f"{name}={yaml_value(value)}"]) == with_value(PARAMS, name, value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


@given(SCALARS | st.lists(TEXTS, max_size=3))
@example(1e-5)
def test_a_value_is_the_same_in_the_dialects_of_yaml(value: Any) -> None:
    text = yaml_value(value)
    assert parse_yaml(text) == yaml.safe_load(text) == value


@given((st.integers() | st.booleans() | st.floats()).map(str))
def test_an_override_of_a_text_may_look_like_a_number(text: str) -> None:
    assert PARAMS.with_overrides([f"sample.start={text}"]).sample.start == text


@given(st.lists(CHANGES, max_size=6))
@example([("sample.start", "\x7f"), ("tokenizer.model", "a\x85b")])
def test_parameters_are_read_back_from_their_file(folder: Path, changes: list[tuple[str, Any]]) -> None:
    params = PARAMS
    for name, value in changes:
        with or_one_line():
            params = with_value(params, name, value)
    path = folder / "params.yaml"
    for text in (params_yaml(params, "title"), overlay(DEFAULT, params.model_dump())):
        path.write_text(text, encoding="utf-8")
        assert load_params((), path) == params


# dataset.yaml


SHA = "0" * 64
SOURCES = (
    {"kind": "pydocs"},
    {"kind": "url", "url": "https://a.b/c.txt", "sha256": SHA},
    {
        "kind": "huggingface",
        "repository": "a/b",
        "split": "c",
        "revision": "d",
        "text_column": "e",
        "documents": 1,
    },
    {"kind": "files", "paths": [{"path": "a.txt", "sha256": SHA}], "text_column": "text"},
    {"kind": "nanogpt", "train": {"path": "a", "sha256": SHA}, "val": {"path": "b", "sha256": SHA}},
)
SPLITS = ({"by": "tail", "fraction": 0.1}, {"by": "documents", "fraction": 0.1, "seed": 1}, {"by": "source"})


@given(st.sampled_from(SOURCES), st.sampled_from(SPLITS), st.none() | st.tuples(PLACES, VALUES), TEXTS)
@example(SOURCES[0], SPLITS[0], None, "\x85")
def test_a_dataset_is_read_back_or_one_line(
    folder: Path, source: Any, split: Any, other: tuple[int, Any] | None, description: str
) -> None:
    values = {"description": description, "published": {"a": 1.5}, "source": source, "split": split}
    path = folder / "any" / "dataset.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values if other is None else placed(values, *other)))
    with or_one_line():
        spec = load_spec("any", folder)
        write_spec(spec, path)
        assert load_spec("any", folder) == spec


# Checksums


FILES = st.dictionaries(
    st.from_regex(r"\A[a-z]{1,3}\Z"), st.binary(min_size=1, max_size=9), min_size=1, max_size=4
)


@given(FILES, PLACES, PLACES, BITS)
def test_any_bit_of_a_recorded_file_counts(
    folder: Path, files: dict[str, bytes], number: int, position: int, bit: int
) -> None:
    saved = folder / "saved"

    def write(to: Path) -> None:
        for name, content in files.items():
            (to / name).write_bytes(content)

    save_folder(saved, write)
    assert read_manifest(saved) == {name: sha256_file(saved / name) for name in sorted(files)}
    assert damage(saved) is None
    name = sorted(files)[number % len(files)]
    (saved / name).write_bytes(flipped(files[name], position, bit))
    assert damage(saved) == damage(saved, name) == f"{name}: not what was saved"
    (saved / name).unlink()
    assert damage(saved) == f"{name}: No such file or directory"


@given(CONTENTS | st.dictionaries(TEXTS, VALUES).map(json.dumps).map(str.encode))
@example(DEEP)
def test_any_bytes_as_a_manifest_are_damage(folder: Path, content: bytes) -> None:
    broken = folder / "broken"
    broken.mkdir(exist_ok=True)
    (broken / MANIFEST_FILE).write_bytes(content)
    assert isinstance(damage(broken), str)


@given(st.dictionaries(TEXTS, VALUES), st.binary(min_size=1, max_size=9), PLACES, BITS)
def test_facts_are_read_back_while_their_files_are_the_same(
    folder: Path, facts: dict[str, Any], content: bytes, position: int, bit: int
) -> None:
    record, result = folder / "run.json", folder / "result"
    result.write_bytes(content)
    write_record(record, facts, [result])
    found = check_recorded(record)
    assert found.pop("files") == {str(result): sha256_file(result)}
    assert json.dumps(found) == json.dumps({name: fact for name, fact in facts.items() if name != "files"})
    result.write_bytes(flipped(content, position, bit))
    with refused("result: not of the run"):
        check_recorded(record)


@given(CONTENTS | VALUES.map(lambda value: json.dumps({"files": value}).encode()))
@example(DEEP)
@example(b'{"files": []}')
def test_any_bytes_as_a_record_of_results_are_one_line(folder: Path, content: bytes) -> None:
    record, result = folder / "run.json", folder / "result"
    result.write_bytes(b"1")
    record.write_bytes(content)
    with refused():
        check_recorded(record)


@given(CONTENTS | VALUES)
@example(DEEP)
def test_any_cache_of_hashes_gives_the_right_hash(folder: Path, content: Any) -> None:
    cache, file = folder / "hashes.json", folder / "hashed"
    file.write_bytes(b"1")
    known = content if isinstance(content, bytes) else json.dumps({str(file): content}).encode()
    cache.write_bytes(known)
    hashes = HashCache(cache)
    assert hashes.sha256(file) == sha256_file(file)
    hashes.save()


# Shards


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, list[list[int]]]:
    """A size of a vocabulary, of shards, and ids in parts."""
    vocab_size = draw(st.sampled_from([1, 300, 1 << 16, (1 << 16) + 1, 1 << 20]))
    ids = st.lists(st.integers(0, vocab_size - 1), max_size=12)
    return vocab_size, draw(st.integers(1, 12)), draw(st.lists(ids, max_size=4))


def write_shards(folder: Path, vocab_size: int, shard_tokens: int, parts: list[list[int]]) -> Manifest:
    """The same ids as both splits."""
    dtype = token_dtype(vocab_size)

    def write_split(split: SplitName) -> SplitManifest:
        writer = ShardWriter(folder, split, dtype, shard_tokens)
        for part in parts:
            writer.append(np.array(part, dtype=np.int64))
        return SplitManifest(tokens=sum(map(len, parts)), documents=1, utf8_bytes=1, shards=writer.close())

    folder.mkdir(exist_ok=True)
    manifest = Manifest(
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        vocab_size=vocab_size,
        tokenizer_sha256=SHA,
        source_sha256="",
        train=write_split("train"),
        val=write_split("val"),
    )
    manifest.save(folder)
    return manifest


@given(streams(), st.integers(0, 60), st.integers(0, 60))
def test_any_ids_are_read_back_from_shards_of_any_size(
    folder: Path, stream: tuple[int, int, list[list[int]]], start: int, stop: int
) -> None:
    shards = folder / "shards"
    manifest = write_shards(shards, *stream)
    assert load_manifest(shards) == manifest
    ids = list(chain.from_iterable(stream[2]))
    tokens = open_split(shards, "val")
    start, stop = sorted((min(start, len(ids)), min(stop, len(ids))))
    assert len(tokens) == len(ids)
    assert tokens.read(start, stop).tolist() == ids[start:stop]
    assert all(0 < shard.tokens <= stream[1] for shard in manifest.val.shards) or not ids


@given(streams(), st.integers(1, 60), st.lists(PLACES, max_size=6))
def test_any_windows_are_those_of_the_shards_end_to_end(
    folder: Path, stream: tuple[int, int, list[list[int]]], length: int, starts: list[int]
) -> None:
    ids = list(chain.from_iterable(stream[2]))
    assume(ids)
    length = 1 + length % len(ids)
    shards = folder / "shards"
    write_shards(shards, *stream)
    tokens = open_split(shards, "train", verify=False)
    starts = [start % (len(ids) - length + 1) for start in starts]
    windows = tokens.windows(np.array(starts, dtype=np.int64), length)
    assert windows.dtype == np.int64 and windows.shape == (len(starts), length)
    assert windows.tolist() == [ids[start : start + length] for start in starts]


@given(streams(), PLACES, PLACES, BITS, st.booleans())
def test_any_cut_or_edited_shard_is_one_line(
    folder: Path, stream: tuple[int, int, list[list[int]]], number: int, position: int, bit: int, cut: bool
) -> None:
    assume(any(stream[2]))
    shards = folder / "shards"
    listed = write_shards(shards, *stream).val.shards
    path = shards / listed[number % len(listed)].name
    content = path.read_bytes()
    path.write_bytes(content[: position % len(content)] if cut else flipped(content, position, bit))
    with refused(rf"{path.name}: {'truncated' if cut else 'edited'}"):
        open_split(shards, "val")


@given(PLACES, VALUES)
def test_any_value_in_a_manifest_of_shards_is_kept_or_one_line(folder: Path, place: int, value: Any) -> None:
    shards = folder / "listed"
    values = write_shards(shards, 300, 2, [[1, 2, 3]]).model_dump()
    text = json.dumps(placed(values, place, value))
    (shards / "manifest.json").write_text(text)
    with or_one_line():
        manifest = load_manifest(shards)
        assert manifest.model_dump() == json.loads(text)
        open_split(shards, "train")


@given(CONTENTS)
@example(DEEP)
def test_any_bytes_as_a_manifest_of_shards_are_one_line(folder: Path, content: bytes) -> None:
    path = folder / "nothing" / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with refused():
        load_manifest(path.parent)


@given(st.text(min_size=10), st.integers(1, 50), st.sampled_from(["char", "byte"]))
def test_any_text_is_read_back_from_its_shards(folder: Path, text: str, shard_tokens: int, name: str) -> None:
    assume(not text.startswith("\ufeff"))
    raw, into = folder / "raw", folder / "tokens"
    raw.mkdir(exist_ok=True)
    (raw / "a.txt").write_bytes(text.encode())
    with or_one_line():
        tokenize(raw, TailSplit(by="tail", fraction=0.3), name, 257, shard_tokens, into)
        tokenizer = load_tokenizer(into)
        splits = [open_split(into, split) for split in ("train", "val")]
        ids = [tokens.read(0, len(tokens)).tolist() for tokens in splits]
        assert "".join(map(tokenizer.decode, ids)) == text


# Prompts


TOKENIZERS = [
    CharTokenizer("ab é\n<|endoftx>", end_of_text=True),
    CharTokenizer("ab", end_of_text=False),
    ByteTokenizer(end_of_text=True),
    ByteTokenizer(end_of_text=False),
    train_bpe([tiny.text()], 300),
]
PROMPTS = (
    TEXTS | st.text(st.characters()) | st.lists(st.sampled_from(["a", "b", END_OF_TEXT, "<|"])).map("".join)
)


@given(st.sampled_from(TOKENIZERS), PROMPTS)
def test_any_prompt_is_read_back_from_its_ids_or_one_line(tokenizer: Tokenizer, prompt: str) -> None:
    assume(not prompt.startswith("FILE:"))
    with or_one_line():
        text, ids = encode_prompt(prompt, tokenizer)
        assert text == prompt
        ends = END_OF_TEXT if tokenizer.end_of_text is None else ""
        assert tokenizer.decode(ids) == prompt.replace(END_OF_TEXT, ends)
        assert ids.dtype == np.int64 and len(ids) > 0 and ids.max() < tokenizer.vocab_size


@given(st.sampled_from(TOKENIZERS), st.binary() | PROMPTS.map(lambda text: text.encode(errors="replace")))
def test_any_file_as_a_prompt_is_its_text_or_one_line(
    folder: Path, tokenizer: Tokenizer, content: bytes
) -> None:
    path = folder / "prompt.txt"
    path.write_bytes(content)
    with or_one_line():
        text, _ = encode_prompt(f"FILE:{path}", tokenizer)
        assert text.encode() == content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@given(PROMPTS)
def test_any_name_of_a_prompt_file_is_one_line(name: str) -> None:
    assume(not Path(name.replace("\0", "")).exists())
    with refused():
        encode_prompt(f"FILE:{name}", TOKENIZERS[0])


@given(st.sampled_from(TOKENIZERS), st.lists(PLACES))
def test_any_ids_are_the_same_text_one_by_one_as_at_once(tokenizer: Tokenizer, places: list[int]) -> None:
    ids = [place % tokenizer.vocab_size for place in places]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)


@given(st.sampled_from(TOKENIZERS), PLACES, VALUES)
def test_any_value_in_a_tokenizer_is_a_tokenizer_or_one_line(
    folder: Path, tokenizer: Tokenizer, place: int, value: Any
) -> None:
    (folder / TOKENIZER_FILE).write_text(json.dumps(placed(json.loads(tokenizer.to_json()), place, value)))
    with or_one_line():
        loaded = load_tokenizer(folder)
        assert loaded.decode(loaded.encode("ab")) == "ab"


@given(CONTENTS)
@example(DEEP)
@example(CharTokenizer("", end_of_text=False).to_json().encode())
def test_any_bytes_as_a_tokenizer_are_one_line(folder: Path, content: bytes) -> None:
    (folder / TOKENIZER_FILE).write_bytes(content)
    with refused():
        load_tokenizer(folder)
