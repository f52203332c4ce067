"""Which text goes into which split, and that a folder of shards is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.corpus.documents import corpus_files, fingerprint, read_pieces
from pipeline.corpus.sources import DocumentSplit, GivenSplit, Split, TailSplit, UrlSource, load_spec
from pipeline.storage.files import write_text
from pipeline.storage.machine import Room
from pipeline.storage.resuming import PROGRESS_FILE
from pipeline.tokens import encode, write_shards
from pipeline.tokens.nanogpt_ids import write_meta
from pipeline.tokens.shards import Manifest, SplitName, load_manifest, open_split
from pipeline.tokens.tokenizers import (
    END_OF_TEXT,
    GPT2_FILES,
    GPT2_URL,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    load_tokenizer,
)
from pipeline.tokens.write_shards import tokenize
from tests import tiny

TAIL = TailSplit(by="tail", fraction=0.1)
DOCUMENTS = ["one\n", "naïve two", "", "three 😀\n\n", "four, the longest of them all", "five"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def write_documents(raw: Path, texts: Sequence[str]) -> None:
    write_text(raw / "documents.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))


def tokenized(
    raw: Path, split: Split = TAIL, name: str = "byte", vocab_size: int = 300, shard_tokens: int = 10**6
) -> Manifest:
    """What `tokenize` makes of `raw`, in the folder beside it."""
    return tokenize(raw, split, name, vocab_size, shard_tokens, raw.parent / "tokens")


def ids_of(raw: Path, split: SplitName) -> list[int]:
    tokens = open_split(raw.parent / "tokens", split)
    return [int(token) for token in tokens.read(0, len(tokens))]


def text_of(raw: Path, split: SplitName) -> str:
    """The split's text, `<|endoftext|>` standing for its id."""
    tokenizer = load_tokenizer(raw.parent / "tokens")
    return (
        "".join(
            END_OF_TEXT
            if token == tokenizer.end_of_text
            else tokenizer.decode_bytes([token]).decode("latin-1")
            for token in ids_of(raw, split)
        )
        .encode("latin-1")
        .decode()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
@pytest.mark.parametrize("length", [13, 990, 1003])
def test_the_tail_is_cut_as_in_nanogpt(raw: Path, name: str, length: int) -> None:
    text = tiny.text()[:length]
    write_text(raw / "a.txt", text)
    manifest = tokenized(raw, name=name)
    n = len(text)
    splits: list[tuple[SplitName, str]] = [("train", text[: int(n * 0.9)]), ("val", text[int(n * 0.9) :])]
    tokenizer = load_tokenizer(raw.parent / "tokens")
    for split, expected in splits:
        assert ids_of(raw, split) == tokenizer.encode(expected).tolist()
        assert tokenizer.decode(ids_of(raw, split)) == expected
        assert manifest.split(split).tokens == len(ids_of(raw, split))
        assert manifest.split(split).utf8_bytes == len(expected.encode())
    assert (manifest.train.documents, manifest.val.documents) == (0, 1)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_documents_end_in_an_end_of_text_wherever_the_tail_begins(raw: Path, fraction: float) -> None:
    write_documents(raw, DOCUMENTS)
    manifest = tokenized(raw, TailSplit(by="tail", fraction=fraction))
    train, val = text_of(raw, "train"), text_of(raw, "val")
    assert train + val == "".join(text + END_OF_TEXT for text in DOCUMENTS)
    num_characters = len(train.replace(END_OF_TEXT, ""))
    assert num_characters == int(len("".join(DOCUMENTS)) * (1 - fraction))
    for split, text in ((manifest.train, train), (manifest.val, val)):
        assert split.documents == text.count(END_OF_TEXT)
        assert split.utf8_bytes == len(text.replace(END_OF_TEXT, "").encode())


def test_one_document_has_no_end_of_text(raw: Path) -> None:
    write_documents(raw, [tiny.text()])
    assert tokenized(raw, name="byte").vocab_size == 256
    assert text_of(raw, "train") + text_of(raw, "val") == tiny.text()
    tokenized(raw, name="bpe")
    assert END_OF_TEXT not in text_of(raw, "train") + text_of(raw, "val")


@pytest.mark.parametrize(
    ("number", "fraction", "seed"), [(2, 0.1, 0), (40, 0.05, 2357), (41, 0.05, 1), (97, 0.3, 7)]
)
def test_documents_are_split_as_the_datasets_library_does(
    raw: Path, number: int, fraction: float, seed: int
) -> None:
    texts = [f"document {i}" for i in range(number)]
    write_documents(raw, texts)
    manifest = tokenized(raw, DocumentSplit(by="documents", fraction=fraction, seed=seed))
    split = datasets.Dataset.from_dict({"text": texts}).train_test_split(
        test_size=fraction, seed=seed, shuffle=True
    )
    for name, reference in (("train", split["train"]), ("val", split["test"])):
        found = text_of(raw, "val" if name == "val" else "train").removesuffix(END_OF_TEXT).split(END_OF_TEXT)
        assert sorted(found) == sorted(reference["text"])
        assert found == [text for text in texts if text in set(found)]  # in the order of the corpus
    assert (manifest.train.documents, manifest.val.documents) == (len(split["train"]), len(split["test"]))


def test_the_manifest_describes_the_folder(raw: Path) -> None:
    write_documents(raw, DOCUMENTS)
    manifest = tokenized(raw, shard_tokens=10)
    folder = raw.parent / "tokens"
    assert load_manifest(folder) == manifest
    assert (manifest.dtype, manifest.vocab_size) == ("uint16", 257)
    assert manifest.tokenizer_sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert manifest.source_sha256 == fingerprint(corpus_files(raw))
    assert manifest.train.utf8_bytes + manifest.val.utf8_bytes == len("".join(DOCUMENTS).encode())
    assert manifest.train.tokens + manifest.val.tokens == len("".join(DOCUMENTS).encode()) + len(DOCUMENTS)
    assert [shard.tokens for shard in manifest.train.shards[:-1]] == [10] * (len(manifest.train.shards) - 1)
    shards = {shard.name for split in (manifest.train, manifest.val) for shard in split.shards}
    assert set(contents(folder)) == shards | {"manifest.json", "tokenizer.json"}


@pytest.mark.parametrize(
    "split", [TAIL, DocumentSplit(by="documents", fraction=0.3, seed=1)], ids=["tail", "documents"]
)
def test_shards_do_not_depend_on_how_the_text_is_read(
    raw: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(raw, DOCUMENTS)
    manifest = tokenized(raw, split)
    before = contents(raw.parent / "tokens")
    for piece_chars in range(1, 31):
        monkeypatch.setattr(
            "pipeline.tokens.encode.read_pieces", partial(read_pieces, piece_chars=piece_chars)
        )
        monkeypatch.setattr("pipeline.tokens.encode.GROUP_CHARACTERS", piece_chars)
        assert tokenized(raw, split) == manifest
        assert contents(raw.parent / "tokens") == before


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_the_same_text_gives_the_same_bytes(raw: Path, name: str) -> None:
    write_text(raw / "a.txt", tiny.text())
    tokenized(raw, name=name)
    before = contents(raw.parent / "tokens")
    tokenized(raw, name=name)
    assert contents(raw.parent / "tokens") == before


def test_a_large_vocabulary_is_written_in_32_bits(raw: Path) -> None:
    characters = "".join(chr(code) for code in [*range(0x20, 0xD800), *range(0xE000, 0x14000)])
    write_text(raw / "a.txt", characters)
    assert tokenized(raw, name="char").dtype == "uint32"
    assert ids_of(raw, "train") + ids_of(raw, "val") == list(range(len(characters)))


def test_bpe_learns_from_the_training_text_alone(raw: Path) -> None:
    text = tiny.text(1000) + "zzzz " * 60
    write_text(raw / "a.txt", text)
    tokenized(raw, name="bpe", vocab_size=400)
    tokenizer = load_tokenizer(raw.parent / "tokens")
    assert text_of(raw, "val").count("zzzz") == 60
    assert not any(b"zz" in token for token in tokenizer.vocabulary)


def test_merges_are_learned_on_a_sample_that_the_manifest_names(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"{'ab'[number % 2] * 3}{number} " for number in range(4000)]
    write_documents(raw, words)
    whole = tokenized(raw, name="bpe", vocab_size=300)
    assert whole.merges_sample is not None and whole.merges_sample.characters == int(
        0.9 * len("".join(words))
    )
    monkeypatch.setattr(encode, "MERGES_CHARACTERS", 5000)
    sampled = tokenized(raw, name="bpe", vocab_size=300)
    assert sampled.merges_sample is not None and 4500 < sampled.merges_sample.characters < 5500
    assert load_manifest(raw.parent / "tokens") == sampled
    assert tokenized(raw, name="bpe", vocab_size=300) == sampled
    assert sampled.tokenizer_sha256 != whole.tokenizer_sha256
    assert tokenized(raw, name="byte").merges_sample is None


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_shards_do_not_depend_on_the_number_of_threads(
    raw: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    write_documents(raw, DOCUMENTS * 30)
    expected = tokenized(raw, name="bpe")
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 20)
    folder = raw.parent / "again"
    assert tokenize(raw, TAIL, "bpe", 300, 10**6, folder, workers=workers) == expected
    assert contents(folder) == contents(raw.parent / "tokens")


def test_char_knows_the_characters_of_the_validation_text(raw: Path) -> None:
    write_text(raw / "a.txt", "ab" * 45 + "é" * 10)
    tokenized(raw, name="char")
    assert load_tokenizer(raw.parent / "tokens").vocabulary == [b"a", b"b", "é".encode()]
    assert ids_of(raw, "val") == [2] * 10


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_what_was_there(
    raw: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, error: type[BaseException]
) -> None:
    write_documents(raw, DOCUMENTS)
    folder = raw.parent / "tokens"
    if earlier:
        tokenized(raw)
    before = contents(folder) if earlier else None

    def interrupted(self: ByteTokenizer, text: str) -> np.ndarray:
        if "four" in text:
            raise error
        return np.zeros(len(text), dtype=np.uint32)

    monkeypatch.setattr(ByteTokenizer, "encode", interrupted)
    monkeypatch.setattr("pipeline.tokens.encode.GROUP_CHARACTERS", 1)
    with pytest.raises(error):
        tokenized(raw)
    assert (contents(folder) if folder.exists() else None) == before
    left = {path.name for path in raw.parent.iterdir()}
    assert left == {"raw", "tokens.part"} | ({"tokens"} if earlier else set())


class Killed(BaseException):
    pass


class Countdown:
    """Stands before functions and raises Killed when they are called for the n-th time together."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls -= 1
            if self.calls == 0:
                raise Killed
            return function(*arguments, **keywords)

        return call


# Where an attempt is killed: before a batch is encoded, a piece is written, or something on disk is changed.
KILLED_BEFORE: dict[str, list[tuple[Any, str]]] = {
    "encode": [(CharTokenizer, "encode"), (BPETokenizer, "encode")],
    "append": [(write_shards.SplitWriter, "append")],
    "disk": [(os, name) for name in ("fsync", "replace", "rename", "truncate")] + [(Path, "unlink")],
}


@pytest.mark.parametrize("where", KILLED_BEFORE)
@pytest.mark.parametrize("name", ["char", "bpe"])
@pytest.mark.parametrize(
    "split", [TAIL, DocumentSplit(by="documents", fraction=0.4, seed=1)], ids=["tail", "documents"]
)
def test_killed_anywhere_and_resumed_it_writes_the_same_bytes(
    raw: Path, monkeypatch: pytest.MonkeyPatch, without_fsync: None, where: str, name: str, split: Split
) -> None:
    write_documents(raw, DOCUMENTS)
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 7)
    monkeypatch.setattr(write_shards, "SECONDS_BETWEEN_RECORDS", 0)
    folder = raw.parent / "tokens"
    tokenized(raw, split, name, shard_tokens=4)
    expected, kills, finished = contents(folder), 0, False
    assert len(expected) > 6
    while not finished:
        shutil.rmtree(folder)
        with monkeypatch.context() as context:
            countdown = Countdown(kills + 1)
            for owner, function in KILLED_BEFORE[where]:
                context.setattr(owner, function, countdown.before(getattr(owner, function)))
            try:
                tokenized(raw, split, name, shard_tokens=4)
                finished = True
            except Killed:
                kills += 1
        tokenized(raw, split, name, shard_tokens=4)
        assert contents(folder) == expected
        assert {path.name for path in raw.parent.iterdir()} == {"raw", "tokens"}
    assert kills >= 4


def test_a_killed_process_goes_on_without_encoding_again(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(raw, DOCUMENTS)
    killed = f"""
import os, time
from pathlib import Path
from pipeline.corpus.sources import TailSplit
from pipeline.tokens import encode, tokenizers, write_shards
encode.GROUP_CHARACTERS = 1
write_shards.SECONDS_BETWEEN_RECORDS = 0
encode = tokenizers.ByteTokenizer.encode
def encode_or_die(self, text):
    if "four" not in text:
        return encode(self, text)
    while '"pieces":4,' not in Path({str(raw.parent / "tokens.part" / PROGRESS_FILE)!r}).read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
tokenizers.ByteTokenizer.encode = encode_or_die
split = TailSplit(by="tail", fraction=0.1)
write_shards.tokenize(Path({str(raw)!r}), split, "byte", 300, 10, Path({str(raw.parent / "tokens")!r}))
"""
    ended = subprocess.run([sys.executable, "-c", killed], cwd=tiny.ROOT)
    assert ended.returncode == -signal.SIGKILL
    encoded: list[str] = []
    encode = ByteTokenizer.encode

    def noted(self: ByteTokenizer, text: str) -> np.ndarray:
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", noted)
    tokenized(raw, shard_tokens=10)
    assert "".join(encoded) == "".join(DOCUMENTS[4:])
    resumed = contents(raw.parent / "tokens")
    tokenized(raw, shard_tokens=10)
    assert contents(raw.parent / "tokens") == resumed


def interrupted(raw: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An attempt to tokenize `raw` that ends after some shards; returns the folder that it leaves."""
    with monkeypatch.context() as context:
        context.setattr(encode, "GROUP_CHARACTERS", 1)
        context.setattr(write_shards, "SECONDS_BETWEEN_RECORDS", 0)
        stop = Countdown(5).before(ByteTokenizer.encode)
        context.setattr(ByteTokenizer, "encode", stop)
        with pytest.raises(Killed):
            tokenized(raw, shard_tokens=4)
    return raw.parent / "tokens.part"


@pytest.mark.parametrize("file", ["train-00000.bin", "train-00002.bin", "tokenizer.json", PROGRESS_FILE])
@pytest.mark.parametrize("damage", [b"", b"?", None])
def test_what_was_damaged_in_the_meantime_is_made_again(
    raw: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: bytes | None
) -> None:
    write_documents(raw, DOCUMENTS)
    tokenized(raw, shard_tokens=4)
    expected = contents(raw.parent / "tokens")
    path = interrupted(raw, monkeypatch) / file
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage + content[1:] if damage else damage)
    tokenized(raw, shard_tokens=4)
    assert contents(raw.parent / "tokens") == expected


@pytest.mark.parametrize("change", ["text", "split", "tokenizer", "shard_tokens", "code"])
def test_only_the_same_work_is_resumed(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    write_documents(raw, DOCUMENTS)
    interrupted(raw, monkeypatch)
    others: dict[str, dict[str, Any]] = {
        "split": {"split": DocumentSplit(by="documents", fraction=0.3, seed=1)},
        "tokenizer": {"name": "char"},
        "shard_tokens": {"shard_tokens": 5},
    }
    other = others.get(change, {})
    if change == "text":
        write_documents(raw, [*DOCUMENTS[:-1], "six"])
    if change == "code":
        monkeypatch.setattr(write_shards, "_code", lambda: [])
    tokenized(raw, **{"shard_tokens": 4} | other)
    assert "going on from there" not in capsys.readouterr().err
    expected = contents(raw.parent / "tokens")
    shutil.rmtree(raw.parent / "tokens")
    tokenized(raw, **{"shard_tokens": 4} | other)
    assert contents(raw.parent / "tokens") == expected


def test_an_interrupted_attempt_is_mentioned(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(raw, DOCUMENTS)
    interrupted(raw, monkeypatch)
    tokenized(raw, shard_tokens=4)
    assert "tokens.part: an interrupted call wrote " in capsys.readouterr().err


@pytest.mark.parametrize(("name", "needed"), [("byte", 4798), ("bpe", 800)])
def test_shards_that_do_not_fit_on_the_disk_are_refused(
    raw: Path, monkeypatch: pytest.MonkeyPatch, name: str, needed: int
) -> None:
    write_text(raw / "a.txt", "".join(chr(97 + n * n % 26) + chr(97 + n % 25) for n in range(1199)))
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(10**9, needed - 1))
    with pytest.raises(UserError, match=r"tokens: its shards need .* of disk, but .* are free; "):
        tokenized(raw, name=name)
    assert {path.name for path in raw.parent.iterdir()} == {"raw"}
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(10**9, needed))
    assert tokenized(raw, name=name).train.tokens > 0


def test_a_flood_of_shards_is_refused(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "MAX_SHARDS", 10)
    write_text(raw / "a.txt", "a" * 99)  # with an end of text 100
    with pytest.raises(
        UserError, match="data.shard_tokens = 9: would write about 12 shards; use at least 10"
    ):
        tokenized(raw, shard_tokens=9)
    assert {path.name for path in raw.parent.iterdir()} == {"raw"}
    manifest = tokenized(raw, shard_tokens=10)
    assert len(manifest.train.shards) == 9


@pytest.mark.parametrize(
    ("texts", "split", "message"),
    [
        (["ab"], TAIL, "leaves no token to predict in the train split"),
        (["abcdefghij"], TAIL, "leaves no token to predict in the val split"),
        (
            ["a", "b"],
            DocumentSplit(by="documents", fraction=0.9, seed=0),
            "leaves no token to predict in the train split",
        ),
        (["abc"], DocumentSplit(by="documents", fraction=0.5, seed=0), "use `by: tail` in dataset.yaml"),
    ],
)
def test_a_split_without_text_is_an_error(raw: Path, texts: list[str], split: Split, message: str) -> None:
    write_documents(raw, texts)
    with pytest.raises(UserError, match=message) as error:
        tokenized(raw, split)
    assert str(raw) in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name for path in raw.parent.iterdir()} == {"raw"}


def test_a_pretrained_tokenizer_is_used_as_it_is(raw: Path) -> None:
    write_documents(raw, ["cab", "ab"])
    tokenizer = CharTokenizer("abc", end_of_text=False)
    split = TailSplit(by="tail", fraction=0.4)
    tokenize(raw, split, "pretrained", 300, 10**6, raw.parent / "tokens", tokenizer)
    assert ids_of(raw, "train") + ids_of(raw, "val") == [2, 0, 1, 0, 1]  # it has no end of text to mark
    assert load_tokenizer(raw.parent / "tokens").to_json() == tokenizer.to_json()


def test_ids_that_came_with_their_tokenizer_take_no_other(raw: Path) -> None:
    own = CharTokenizer("abc", end_of_text=True)
    raw.mkdir()
    write_meta(own, raw / "meta.pkl")
    for name in ("train", "val"):
        np.array([0, 1, 3, 2], dtype=np.uint16).tofile(raw / f"{name}.bin")
    arguments = (raw, GivenSplit(by="source"), "pretrained", 300, 3, raw.parent / "tokens")
    for other in (CharTokenizer("abc", end_of_text=False), ByteTokenizer(end_of_text=True)):
        with pytest.raises(UserError, match="set tokenizer.name to char"):
            tokenize(*arguments, pretrained=other)
    assert not (raw.parent / "tokens").exists()
    manifest = tokenize(*arguments, pretrained=CharTokenizer("cab", end_of_text=True))
    assert ids_of(raw, "train") == ids_of(raw, "val") == [0, 1, 3, 2]
    assert (manifest.train.documents, manifest.train.utf8_bytes, len(manifest.train.shards)) == (1, 3, 2)


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("name", "vocab_size", "train", "val"),
    [("char", 65, 1_003_854, 111_540), ("gpt2", 50_257, 301_966, 36_059)],
)
def test_tinyshakespeare_has_nanogpts_number_of_tokens(
    raw: Path, mirrored: Callable[[str], Path], name: str, vocab_size: int, train: int, val: int
) -> None:
    spec = load_spec("shakespeare", tiny.ROOT / "data")
    assert isinstance(spec.source, UrlSource)
    raw.symlink_to(mirrored(spec.source.url).parent)
    for file in GPT2_FILES if name == "gpt2" else ():
        mirrored(GPT2_URL + file)
    manifest = tokenized(raw, spec.split, name)
    assert (manifest.vocab_size, manifest.train.tokens, manifest.val.tokens) == (vocab_size, train, val)
