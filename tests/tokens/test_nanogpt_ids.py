"""nanoGPT's data folders: what is read of them, and that nothing in them is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.tokens.nanogpt_ids import count_ids, read_ids, read_meta, write_meta
from pipeline.tokens.tokenizers import CharTokenizer

# Of "ab": what a prepare.py of nanoGPT's pickles.
META = {"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}


class Touch:
    """Unpickled by pickle, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def pickled(path: Path, value: Any, protocol: int | None = None) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_meta_becomes_the_tokenizer_of_its_characters(tmp_path: Path, protocol: int) -> None:
    tokenizer = read_meta(pickled(tmp_path / "meta.pkl", META, protocol))
    assert tokenizer.encode("abba").tolist() == [0, 1, 1, 0]
    assert tokenizer.end_of_text is None


@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_meta_that_was_written_reads_back_and_is_plain_for_pickle(
    tmp_path: Path, end_of_text: bool
) -> None:
    tokenizer = CharTokenizer("né \n😀", end_of_text)
    write_meta(tokenizer, tmp_path / "meta.pkl")
    assert read_meta(tmp_path / "meta.pkl").to_json() == tokenizer.to_json()
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == tokenizer.vocab_size == len(meta["itos"])
    ids = [meta["stoi"][character] for character in "né 😀"]  # as sample.py encodes and decodes
    assert ids == tokenizer.encode("né 😀").tolist()
    assert "".join(meta["itos"][i] for i in ids) == "né 😀"


@pytest.mark.parametrize("place", ["all", "value", "key", "nested"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_meta_is_executed(tmp_path: Path, place: str, protocol: int) -> None:
    touch = Touch(tmp_path / "executed")
    meta: Any = {
        "all": touch,
        "value": META | {"extra": touch},
        "key": {touch: 1},
        "nested": META | {"itos": {0: touch}},
    }[place]
    path = pickled(tmp_path / "meta.pkl", meta, protocol)
    with pytest.raises(
        UserError, match=r"meta.pkl: refused, it asks for 'posix.system'; .*nothing was executed"
    ):
        read_meta(path)
    assert not (tmp_path / "executed").exists()
    path.rename(tmp_path / "again.pkl")
    pickle.loads((tmp_path / "again.pkl").read_bytes())
    assert (tmp_path / "executed").exists()  # so it would have been


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(META | {"extra": 1.5}), "'extra' holds a float"),
        (pickle.dumps(META | {"extra": ["a"]}), "'extra' holds a list"),
        (pickle.dumps(META | {"extra": {"a": {}}}), "'extra' holds a dict"),
        (pickle.dumps(META | {"extra": True}), "'extra' holds a bool"),
        (pickle.dumps(META | {"extra": np.int64(1)}), "asks for 'numpy"),
        (pickle.dumps([META]), "holds a list"),
        (b"cnt\nsystem\n.", "asks for 'nt.system'"),
        (pickle.dumps("a\nb")[:-1] + pickle.dumps("c")[2:-1] + b"\x93.", r"asks for 'a\\nb.c'"),
        (b"Pname\n.", "the persistent id 'name'"),
        (b"", "not a pickle"),
        (pickle.dumps(META)[:-9], "not a pickle"),
        (b"not a pickle", "not a pickle"),
        (pickle.dumps({"vocab_size": 50257}), "no stoi and itos"),
        (pickle.dumps(META | {"vocab_size": 3}), "contradict each other"),
        (pickle.dumps(META | {"stoi": {"a": 1, "b": 0}}), "contradict each other"),
        (pickle.dumps(META | {"itos": {1: "a", 2: "b"}}), "contradict each other"),
        (pickle.dumps({"vocab_size": 0, "itos": {}, "stoi": {}}), "contradict each other"),
        (pickle.dumps({"vocab_size": 1, "itos": {0: "ab"}, "stoi": {"ab": 0}}), "'ab' is not a character"),
        (pickle.dumps({"vocab_size": 1, "itos": {0: "\ud800"}, "stoi": {"\ud800": 0}}), "not a character"),
        (
            pickle.dumps({"vocab_size": 2, "itos": {0: "b", 1: "a"}, "stoi": {"b": 0, "a": 1}}),
            "not in code point order",
        ),
    ],
)
def test_a_meta_that_will_not_do_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_meta(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_meta_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "meta.pkl", tmp_path):
        with pytest.raises(UserError, match="name a (meta.pkl|file)"):
            read_meta(path)


def test_ids_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tokens.nanogpt_ids.CHUNK", 3)
    ids = np.array([5, 0, 65535, 1, 2, 3, 4], dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    assert count_ids(tmp_path / "train.bin") == 7
    pieces = list(read_ids(tmp_path / "train.bin", 1 << 16))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    assert np.array_equal(np.concatenate(pieces), ids)
    with pytest.raises(UserError, match="id 4 at position 6 is outside the vocabulary of 4"):
        np.minimum(ids, 4)[[1, 1, 3, 3, 4, 5, 6]].tofile(tmp_path / "train.bin")
        list(read_ids(tmp_path / "train.bin", 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"abc", "not a whole number"), (b"", "no token to predict"), (b"ab", "no token")],
)
def test_ids_that_are_not_whole_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "val.bin").write_bytes(content)
    with pytest.raises(UserError, match=f"val.bin: .*{message}"):
        list(read_ids(tmp_path / "val.bin", 256))
    with pytest.raises(UserError, match="train.bin: no such file"):
        list(read_ids(tmp_path / "train.bin", 256))
