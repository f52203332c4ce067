"""A user's own text, and nanoGPT's ids, from the command to raw/ and to shards."""

from __future__ import annotations

import gzip
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.cli import finetune_on, preset, train_on
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import tokens_folder
from pipeline.corpus.documents import read_pieces
from pipeline.corpus.sources import FilesSource, load_spec, write_spec
from pipeline.tokens.batches import check_fits
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
    Path("my book.txt").write_text("Call me Ishmael.\n" * 8000)
    train_on.main("my book.txt", no_run=True)
    assert load_params().data.dataset == "my-book"
    changed = [line for line in Path("params.yaml").read_text().splitlines() if line not in before]
    assert len(changed) == 1
    assert changed[0].startswith("  dataset: my-book ")
    download.main()
    assert next(read_pieces(Path("data/my-book/raw"))).text.startswith("Call me Ishmael.")
    said = capsys.readouterr().out
    assert "data/my-book/dataset.yaml" in said
    assert "data/my-book/raw: 1 document, 0.1 MB" in said


@pytest.mark.parametrize("characters", [11, 40, 300, 4000, 27_000, 60_000])
def test_a_text_however_short_fits_its_parameters(
    project: Path, capsys: pytest.CaptureFixture[str], characters: int
) -> None:
    words = tiny.text(1 + characters // 4)
    Path("short.txt").write_text(words[:characters])
    train_on.main("short.txt", no_run=True)
    assert f"a short text, of {characters:,} characters" in capsys.readouterr().out
    download.main()
    tokenize.main()
    params = load_params()
    manifest = load_manifest(tokens_folder(params))
    for split in ("train", "val"):
        check_fits(manifest.split(split).tokens, params.model.block_size, split)
    assert params.tokenizer.name == ("bpe" if characters > 512 * 50 else "byte")
    assert params.tokenizer.vocab_size <= max(2048 * (params.tokenizer.name == "byte"), characters // 50)
    train = params.train
    seen = train.max_iters * train.batch_size * params.model.block_size
    assert train.max_iters == 20 or seen < 41 * manifest.train.tokens + train.batch_size * 64
    assert train.warmup_iters <= train.max_iters // 10 and train.lr_decay_iters == train.max_iters


def test_after_a_short_text_a_longer_one_or_a_preset_has_the_usual_parameters(project: Path) -> None:
    Path("presets").symlink_to(PROJECT / "presets")
    before = load_params()
    Path("short.txt").write_text(tiny.text(10))
    Path("long.txt").write_text(tiny.text(40_000))
    train_on.main("short.txt", no_run=True)
    train_on.main("short.txt", no_run=True)  # again
    assert load_params().model.block_size == 2
    train_on.main("long.txt", no_run=True)
    assert load_params().model_copy(update={"data": before.data}) == before
    train_on.main("short.txt", no_run=True)
    preset.main("default")  # nothing of it was edited by hand
    assert load_params() == before
    train_on.main("short.txt", no_run=True)
    edited = Path("params.yaml").read_text().replace("block_size: 2 ", "block_size: 1 ")
    Path("params.yaml").write_text(edited)
    with pytest.raises(UserError, match="edits of yours on top of preset default: model.block_size = 1;"):
        preset.main("default")
    train_on.main("long.txt", no_run=True)
    assert load_params().model.block_size == 1


def test_a_short_text_to_finetune_on_keeps_the_tokenizer(project: Path) -> None:
    Path("params.yaml").unlink()
    Path("presets").symlink_to(PROJECT / "presets")
    Path("short.txt").write_text(tiny.text(2000))
    finetune_on.main("short.txt", no_run=True)
    params = load_params()
    assert params.tokenizer.name == "gpt2"
    assert params.model.block_size == 64
    assert params.train.max_iters == 20
    Path("long.txt").write_text(tiny.text(20_000))
    finetune_on.main("long.txt", force=True, no_run=True)
    assert (load_params().model.block_size, load_params().train.max_iters) == (1024, 110)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1, and yield its URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_text_at_a_url_is_downloaded_once_and_is_the_same_elsewhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("PIPELINE_MIRROR", raising=False)
    site = tmp_path / "site"
    site.mkdir()
    text = "naïve words\n" * 100
    (site / "old.txt.gz").write_bytes(gzip.compress(text.encode("latin-1")))
    (site / "page").write_text(f"<html><body><p>{text}</p></body></html>")
    (site / "story").write_text(text)
    (site / "picture.png").write_bytes(b"\0\1")
    (site / "blob").write_bytes(b"\0\1")
    with serving(site) as url:
        for name in ("old.txt.gz", "page", "story"):
            train_on.main(f"{url}/{name}", encoding="latin-1", no_run=True)
            source = load_spec(load_params().data.dataset).source
            assert isinstance(source, FilesSource)
            assert source.paths[0].path == f"{url}/{name}"
            shutil.rmtree(tmp_path / "cache")  # as on another machine
            download.main()
            found = "".join(
                piece.text for piece in read_pieces(Path(f"data/{load_params().data.dataset}/raw"))
            )
            assert found.split() == text.split()
        (site / "story").write_text("another")
        train_on.main(f"{url}/story", no_run=True)
        assert "story.txt: downloaded before; to do it again, remove it" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(UserError, match=f"{url}/story: sha256 is .*, expected"):
            download.main()
        for name in ("picture.png", "blob"):
            with pytest.raises(UserError, match=f"TEXT={url}/{name}: unknown file type"):
                train_on.main(f"{url}/{name}", no_run=True)
        with pytest.raises(UserError, match="HTTP status 404"):
            train_on.main(f"{url}/nothing.txt", no_run=True)


def test_a_data_set_of_the_hub_becomes_the_active_dataset(project: Path, tmp_path: Path) -> None:
    files = tmp_path / "corpus"
    (files / "data").mkdir(parents=True)
    rows = {"body": [f"document {row}" for row in range(50)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), files / "data/train-00000-of-00001.parquet")
    for argument in (f"hf:{files}", f"hf:{files}@main"):
        with pytest.raises(UserError, match="no column 'text', only body"):
            train_on.main(argument, no_run=True)
        train_on.main(argument, column="body", no_run=True)
        assert load_params().data.dataset == "corpus"
        download.main()
        assert len([*read_pieces(Path("data/corpus/raw"))]) == 50
    for wrong in ("hf:", "hf:a:b:c", "hf:a@b@c"):
        with pytest.raises(UserError, match="no name on the hub"):
            train_on.main(wrong, no_run=True)


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
