"""A user's own text, and nanoGPT's ids, from the command to raw/ and to shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import train_on
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.corpus.documents import read_pieces
from pipeline.corpus.sources import load_spec, write_spec
from pipeline.tokens.nanogpt_ids import write_meta
from pipeline.tokens.shards import load_manifest
from pipeline.tokens.tokenizers import GPT2_FILES, GPT2_URL, CharTokenizer, gpt2_tokenizer, load_tokenizer
from stages import download, eval_baselines, tokenize
from tests import tiny

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the default parameters and the dataset pydocs."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(tiny.params_yaml())
    write_spec(load_spec("pydocs", PROJECT / "data"), Path("data/pydocs/dataset.yaml"))
    return tmp_path


def test_own_text_becomes_the_active_dataset(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("params.yaml").read_text().splitlines()
    Path("my book.txt").write_text("Call me Ishmael.\n")
    train_on.main("my book.txt", no_run=True)
    assert load_params().data.dataset == "my-book"
    changed = [line for line in Path("params.yaml").read_text().splitlines() if line not in before]
    assert len(changed) == 1
    assert changed[0].startswith("  dataset: my-book ")
    download.main()
    assert [piece.text for piece in read_pieces(Path("data/my-book/raw"))] == ["Call me Ishmael.\n"]
    said = capsys.readouterr().out
    assert "data/my-book/dataset.yaml" in said
    assert "data/my-book/raw: 1 document, 0.0 MB" in said


def test_own_text_does_not_take_another_datasets_place(project: Path) -> None:
    Path("pydocs.txt").write_text("text")
    before = Path("data/pydocs/dataset.yaml").read_text()
    with pytest.raises(UserError, match="data/pydocs/dataset.yaml is of other text; .*: NAME=pydocs-2"):
        train_on.main("pydocs.txt", no_run=True)
    assert Path("data/pydocs/dataset.yaml").read_text() == before
    train_on.main("pydocs.txt", name="pydocs-2", no_run=True)
    assert load_params().data.dataset == "pydocs-2"
    with pytest.raises(UserError, match=r"NAME=a/../b: not a folder's name; .*: NAME=a-..-b"):
        train_on.main("pydocs.txt", name="a/../b", no_run=True)


def test_files_of_the_same_name_do_not_replace_each_other(project: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(f"{folder}/notes.txt").write_text(f"text of {folder}")
    train_on.main("a/notes.txt", no_run=True)
    with pytest.raises(UserError, match="data/notes/dataset.yaml is of other text"):
        train_on.main("b/notes.txt", no_run=True)
    train_on.main("a/{notes,more}.txt", name="notes", no_run=True)  # a file of it, and more


def prepared(folder: Path, train: str, val: str, with_meta: bool = True) -> Path:
    """What a prepare.py of nanoGPT's leaves: its ids of the characters of a text."""
    folder.mkdir(parents=True)
    tokenizer = CharTokenizer(train + val, end_of_text=False)
    for name, text in (("train.bin", train), ("val.bin", val)):
        tokenizer.encode(text).astype(np.uint16).tofile(folder / name)
    if with_meta:
        write_meta(tokenizer, folder / "meta.pkl")
    return folder


def test_nanogpts_ids_become_the_active_dataset_byte_for_byte(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny.text()
    folder = prepared(Path("nanoGPT/data/pydocs"), text[:2000], text[2000:])
    train_on.main(str(folder), no_run=True)
    params = load_params()
    assert (params.data.dataset, params.tokenizer.name) == ("nanogpt-pydocs", "char")  # pydocs is another
    assert "data.dataset is now nanogpt-pydocs, tokenizer.name is now char" in capsys.readouterr().out
    download.main()
    raw, shards = Path("data/nanogpt-pydocs/raw"), Path("data/nanogpt-pydocs/char")
    names = ["manifest.json", "meta.pkl", "train.bin", "val.bin"]
    assert sorted(path.name for path in raw.iterdir()) == names
    assert f"{raw}: {len(text):,} tokens" in capsys.readouterr().out
    tokenize.main()
    for split in ("train", "val"):
        assert (shards / f"{split}-00000.bin").read_bytes() == (folder / f"{split}.bin").read_bytes()
    manifest = load_manifest(shards)
    assert manifest.train.tokens == 2000
    assert manifest.train.utf8_bytes == len(text[:2000].encode())
    assert manifest.vocab_size == len(set(text))
    assert load_tokenizer(shards).decode(np.fromfile(folder / "val.bin", np.uint16).tolist()) == text[2000:]
    eval_baselines.main("bigram")
    train_on.main(f"{folder}/", no_run=True)  # again, and as a shell completes it
    assert load_params().data.dataset == "nanogpt-pydocs"


def test_nanogpts_ids_keep_their_tokenizer(project: Path) -> None:
    text = tiny.text()
    train_on.main(str(prepared(Path("mine"), text[:2000], text[2000:])), no_run=True)
    download.main()
    for name in ("byte", "bpe", "gpt2"):
        with pytest.raises(UserError, match="set tokenizer.name to char"):
            tokenize.main([f"tokenizer.name={name}"])
    assert not list(Path("data/nanogpt-mine").glob("[!r]*/"))


def test_nanogpts_ids_that_changed_are_named(project: Path) -> None:
    folder = prepared(Path("mine"), "abc", "cab")
    train_on.main(str(folder), no_run=True)
    np.array([0, 1], dtype=np.uint16).tofile(folder / "val.bin")
    with pytest.raises(UserError, match="val.bin: changed since dataset.yaml was made"):
        download.main()


def test_a_folder_of_ids_that_will_not_do_changes_nothing(project: Path) -> None:
    before = Path("params.yaml").read_text()
    folder = prepared(Path("mine"), "abc", "cab")
    (folder / "meta.pkl").write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(UserError, match=r"meta.pkl: refused, it asks for 'posix.system'"):
        train_on.main(str(folder), no_run=True)
    (folder / "val.bin").write_bytes(b"")
    with pytest.raises(UserError, match="val.bin: 0 bytes leave no token to predict"):
        train_on.main(str(folder), no_run=True)
    assert Path("params.yaml").read_text() == before
    assert not Path("data/nanogpt-mine").exists()


@pytest.mark.mirror
def test_nanogpts_ids_without_a_meta_are_gpt2s(project: Path, mirrored: Callable[[str], Path]) -> None:
    for name in GPT2_FILES:
        mirrored(GPT2_URL + name)
    ids = gpt2_tokenizer().encode_prompt("Call me Ishmael.<|endoftext|>Some years ago")
    Path("mine").mkdir()
    for name in ("train", "val"):
        ids.astype(np.uint16).tofile(f"mine/{name}.bin")
    train_on.main("mine", no_run=True)
    assert load_params().tokenizer.name == "gpt2"
    download.main()
    tokenize.main()
    manifest = load_manifest(Path("data/nanogpt-mine/gpt2"))
    assert (manifest.vocab_size, manifest.val.tokens, manifest.val.documents) == (50257, len(ids), 1)
    assert manifest.val.utf8_bytes == len("Call me Ishmael.Some years ago")
    with pytest.raises(UserError, match=r"no meta.pkl\); set tokenizer.name to gpt2"):
        tokenize.main(["tokenizer.name=char"])
    np.array([50256, 50257], dtype=np.uint16).tofile("mine/val.bin")
    train_on.main("mine", no_run=True)
    download.main()
    with pytest.raises(UserError, match="id 50257 at position 1 is outside the vocabulary of 50257"):
        tokenize.main()
