"""dataset.yaml, and raw/ from each kind of source."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.errors import UserError
from pipeline.corpus import hub_datasets, pydocs
from pipeline.corpus.documents import corpus_files, read_pieces
from pipeline.corpus.fetch import CHUNK_BYTES
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import (
    DatasetSpec,
    load_spec,
    write_raw,
    write_spec,
)
from pipeline.storage.checksums import read_manifest
from pipeline.storage.files import write_text
from tests.hub_server import COMMIT, serving_hub
from tests.train.runs import flip_a_bit

PROJECT = Path(__file__).parents[2]
TAIL = {"by": "tail", "fraction": 0.1}


def spec(**source: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"source": source, "split": TAIL})


def huggingface(repository: Path, **changes: Any) -> DatasetSpec:
    fields: dict[str, Any] = {"split": "train", "revision": COMMIT, "text_column": "body"}
    return spec(kind="huggingface", repository=str(repository), **fields | changes)


def texts(raw: Path) -> list[str]:
    return [piece.text for piece in read_pieces(raw)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """2,500 documents in three Parquet files, in the layout of the hub."""
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    for part in range(3):
        rows = range(part * 1000, min(part * 1000 + 1000, 2500))
        table = pyarrow.table({"id": list(rows), "body": [f"document {row} é\n" for row in rows]})
        pyarrow.parquet.write_table(table, data / f"train-{part:05d}-of-00003.parquet")
    return data.parent


@pytest.mark.parametrize("dataset", sorted(path.parent.name for path in PROJECT.glob("data/*/dataset.yaml")))
def test_the_datasets_of_the_project_load(dataset: str, tmp_path: Path) -> None:
    loaded = load_spec(dataset, PROJECT / "data")
    write_spec(loaded, tmp_path / "copy" / "dataset.yaml")
    assert load_spec("copy", tmp_path) == loaded


def test_a_missing_dataset_names_the_others(tmp_path: Path) -> None:
    for name in ("shakespeare", "pydocs"):
        write_spec(spec(kind="pydocs"), tmp_path / name / "dataset.yaml")
    with pytest.raises(UserError) as error:
        load_spec("shakespear", tmp_path)
    message = str(error.value)
    assert "did you mean shakespeare?" in message
    assert "pydocs, shakespeare" in message
    assert "make train-on TEXT=" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: {kind: ftp}", "source"),
        ("source: {kind: url, url: 'https://a/b.txt', sha256: abc}", "sha256"),
        (f"source: {{kind: url, url: 'https://a/b.zip', sha256: {'0' * 64}}}", ".txt, .jsonl or .parquet"),
        (
            "source: {kind: huggingface, repository: a/b, split: train, text_column: text}",
            "revision is missing",
        ),
        ("source: {kind: pydocs, speed: 3}", "speed"),
        (
            "source: {kind: nanogpt, "
            + ", ".join(f"{split}: {{path: a, sha256: {'a' * 64}}}" for split in ("train", "val"))
            + "}",
            "use `by: source` for nanogpt",
        ),
    ],
)
def test_a_wrong_dataset_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine" / "dataset.yaml"
    path.parent.mkdir()
    path.write_text(f"{text}\nsplit: {{by: tail, fraction: 0.1}}\n")
    with pytest.raises(UserError, match=message) as error:
        load_spec("mine", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_pydocs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "documents", lambda: iter([("a", "one é\n"), ("b", "two")]))
    write_raw(spec(kind="pydocs"), tmp_path / "raw")
    assert (tmp_path / "raw" / "documents.jsonl").read_text(encoding="utf-8") == (
        '{"name": "a", "text": "one é\\n"}\n{"name": "b", "text": "two"}\n'
    )


def test_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = tmp_path / "mirror" / "example.com" / "plays" / "hamlet.txt"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_text("To be")
    monkeypatch.setenv("PIPELINE_MIRROR", str(tmp_path / "mirror"))
    sha256 = hashlib.sha256(b"To be").hexdigest()
    write_raw(spec(kind="url", url="https://example.com/plays/hamlet.txt", sha256=sha256), tmp_path / "raw")
    assert {path.name for path in (tmp_path / "raw").iterdir()} == {"hamlet.txt", "manifest.json"}
    assert texts(tmp_path / "raw") == ["To be"]


def test_a_raw_that_is_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    linked = tmp_path / "cache.txt"
    linked.write_text("old")
    linked.chmod(0o444)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "00000-new.txt").hardlink_to(linked)
    (raw / "left.txt").write_text("old")
    (tmp_path / "new.txt").write_text("new")
    new = spec_for_text(str(tmp_path / "new.txt"))
    write_raw(new, raw)
    assert texts(raw) == ["new"]
    assert linked.read_text() == "old"
    (tmp_path / "new.txt").write_text("changed")
    with pytest.raises(UserError):
        write_raw(new, raw)
    assert texts(raw) == ["new"]


def test_huggingface_from_a_local_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_datasets, "ROW_GROUP_BYTES", 5_000)
    monkeypatch.setattr(hub_datasets, "BATCH_DOCUMENTS", 300)
    raw = tmp_path / "raw"
    write_raw(huggingface(repository), raw)
    names = sorted(path.name for path in corpus_files(raw))
    assert names == [f"part-{number:05d}.parquet" for number in range(3)]
    assert pyarrow.parquet.read_schema(raw / names[0]).names == ["text"]
    assert pyarrow.parquet.read_metadata(raw / names[0]).num_row_groups > 1
    assert texts(raw) == [f"document {row} é\n" for row in range(2500)]


def test_huggingface_rows_without_a_text_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus" / "data"
    folder.mkdir(parents=True)
    column = pyarrow.array([None, "one", None, "two"], pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"body": column}), folder / "train-00000-of-00001.parquet")
    write_raw(huggingface(tmp_path / "corpus", documents=2), tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["one", "two"]
    assert "left out 2 rows without a text\n" in capsys.readouterr().out


def test_huggingface_goes_on_after_the_last_finished_file(repository: Path, tmp_path: Path) -> None:
    write_raw(huggingface(repository), tmp_path / "uninterrupted")
    last = repository / "data" / "train-00002-of-00003.parquet"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    raw = tmp_path / "raw"
    with pytest.raises(UserError):
        write_raw(huggingface(repository), raw)
    last.write_bytes(whole)
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "raw.part").glob("part-*")}
    assert sorted(kept) == ["part-00000.parquet", "part-00001.parquet"]
    write_raw(huggingface(repository), raw)
    contents = {path.name: path.read_bytes() for path in raw.iterdir()}
    assert contents == {path.name: path.read_bytes() for path in (tmp_path / "uninterrupted").iterdir()}
    assert all((raw / name).stat().st_ino == inode for name, inode in kept.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "Bad split: test"),
        ({"config": "large"}, "'large' not found"),
        ({"text_column": "text"}, "no column 'text', only id, body"),
        ({"text_column": "id"}, "column 'id' holds int64"),
    ],
)
def test_huggingface_mistakes(
    repository: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        write_raw(huggingface(repository, **changes), tmp_path / "raw")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "raw").exists()


def test_a_dataset_with_another_number_of_documents_is_refused(repository: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_raw(huggingface(repository, documents=2500), raw)
    (repository / "data" / "train-00001-of-00003.parquet").unlink()  # as in a conversion that was cut short
    with pytest.raises(UserError, match=r"source.documents = 2500: .* has 1500; name a complete") as error:
        write_raw(huggingface(repository, documents=2500), raw)
    assert "\n" not in str(error.value)
    assert len(texts(raw)) == 2500  # the old text
    shutil.rmtree(repository)
    repository.mkdir()
    kept = sorted(raw.with_name("raw.part").glob("*.parquet"))
    assert len(kept) == 2, "what was downloaded is there for the next attempt"


def test_huggingface_without_the_extra(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the extra hub, .* run `make install EXTRAS=hub`") as error:
        write_raw(huggingface(repository), tmp_path / "raw")
    assert "\n" not in str(error.value)


# huggingface_hub reads HF_ENDPOINT when it is imported, so it takes a fresh interpreter.
FROM_THE_HUB = """
import sys
from pathlib import Path
from pipeline.corpus.hub_datasets import write_documents
from pipeline.corpus.own_text import spec_for_hub
from pipeline.config.errors import UserError
folder, commit = Path(sys.argv[1]), sys.argv[2]
assert spec_for_hub("hf:someone/corpus", "body").source.revision == commit
write_documents("someone/corpus", None, "train", commit, "body", folder)
for repository, revision in (("someone/corpus", "f" * 40), ("someone/nothing", commit)):
    try:
        write_documents(repository, None, "train", revision, "body", folder)
    except UserError as error:
        print(error)
for text in ("hf:someone/nothing", "hf:someone/corpus@v2", "hf:someone/corpus:large"):
    try:
        spec_for_hub(text, "body")
    except UserError as error:
        print(error)
"""


def test_huggingface_from_a_hub(repository: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    with serving_hub("someone/corpus", repository) as endpoint:
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        result = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB, str(raw), COMMIT],
            env=os.environ | settings | {"PYTHONPATH": str(PROJECT), "no_proxy": "*"},
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    assert texts(raw) == [f"document {row} é\n" for row in range(2500)]
    wrong_revision, wrong_repository, *wrong_texts = result.stdout.splitlines()
    assert "correct source.repository or source.revision" in wrong_revision
    assert "someone/nothing" in wrong_repository
    assert [text.split(",")[0].split(": ")[0] for text in wrong_texts] == [
        "hf:someone/nothing",
        "hf:someone/corpus",
        "someone/corpus",
    ], wrong_texts


DOWNLOAD = """
import shutil, sys
from pathlib import Path
from types import SimpleNamespace
from pipeline.config.command_line import run
from pipeline.corpus.sources import write_raw
from tests.corpus.test_sources import huggingface
raw, documents, free = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv.pop())
del sys.argv[1:]
if free:
    shutil.disk_usage = lambda path: SimpleNamespace(total=free, free=free)
run(lambda: write_raw(huggingface("someone/corpus", documents=documents), raw))
"""


def downloading(endpoint: str, raw: Path, documents: int = 2500, free: int = 0) -> subprocess.Popen[str]:
    """A process that downloads someone/corpus, as it would with so many bytes of free disk."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(raw.parent / "cache"), "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, str(raw), str(documents), str(free)],
        env=os.environ | settings | {"PYTHONPATH": str(PROJECT), "no_proxy": "*"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def large(repository: Path) -> Path:
    """The same with text that makes files of several chunks, which are downloaded and verified as a whole."""
    for number, path in enumerate(sorted((repository / "data").iterdir())):
        draw = random.Random(number)
        table = pyarrow.parquet.read_table(path)
        body = pyarrow.array([draw.randbytes(150).hex() for _ in range(len(table))])
        pyarrow.parquet.write_table(table.set_column(1, "body", body), path)
    return repository


def whole(sent: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """The downloads of files to their end, without reads of Parquet's footers."""
    return [(name[-22:-17], part) for name, part in sent if part is None or part.endswith("-")]


def test_a_killed_download_goes_on_in_the_middle_of_a_piece(large: Path, tmp_path: Path) -> None:
    raw, sent, stalls = (
        tmp_path / "raw",
        list[tuple[str, str | None]](),
        ["data/train-00001-of-00003.parquet"],
    )
    half = (large / stalls[0]).stat().st_size // 2
    unfinished = tmp_path / "raw.part/downloads/.train-00001-of-00003.parquet.part"
    with serving_hub("someone/corpus", large, sent=sent, stalls=stalls) as endpoint:
        process = downloading(endpoint, raw)
        deadline = time.monotonic() + 60
        while not unfinished.exists() or unfinished.stat().st_size < half - CHUNK_BYTES:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        kept = unfinished.stat().st_size
        assert whole(sent) == [("00000", None), ("00001", None)] and kept >= CHUNK_BYTES
        first = tmp_path / "raw.part/part-00000.parquet"
        inode = first.stat().st_ino
        sent.clear()
        again = downloading(endpoint, raw)
        _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert whole(sent) == [("00001", f"bytes={kept}-"), ("00002", None)]
    assert "someone/corpus: 2 files, " in errors and " of disk, " in errors
    assert (raw / "part-00000.parquet").stat().st_ino == inode
    write_raw(huggingface(large), tmp_path / "local")
    contents = {path.name: path.read_bytes() for path in raw.iterdir()}
    assert contents == {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}


def test_a_disk_that_is_too_small_is_refused_before_any_piece(large: Path, tmp_path: Path) -> None:
    raw, sent = tmp_path / "raw", list[tuple[str, str | None]]()
    files = [path.stat().st_size for path in (large / "data").iterdir()]
    with serving_hub("someone/corpus", large, sent=sent) as endpoint:
        for free, fits in ((sum(files), False), (sum(files) + max(files), True)):
            process = downloading(endpoint, raw, free=free)
            _, errors = process.communicate()
            assert process.returncode == (0 if fits else 2), errors
            assert bool(whole(sent)) == raw.exists() == fits
            said, *refused = errors.splitlines()
            assert said.startswith("someone/corpus: 3 files, ") and said.endswith("are free")
            assert len(refused) == (0 if fits else 1)
            assert fits or "raw: the files of someone/corpus need" in refused[0]


def test_a_piece_that_is_not_what_the_hub_lists_is_not_kept(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hub_server.sha256_file", lambda path: "0" * 64)
    with serving_hub("someone/corpus", large) as endpoint:
        process = downloading(endpoint, tmp_path / "raw")
        _, errors = process.communicate()
    assert process.returncode == 2 and "expected 0000" in errors.splitlines()[-1]
    assert not list(tmp_path.rglob("*.parquet.part")) and not list(tmp_path.rglob("part-*"))


def test_a_part_that_has_changed_is_made_again(repository: Path, tmp_path: Path) -> None:
    write_raw(huggingface(repository), tmp_path / "uninterrupted")
    last = repository / "data" / "train-00002-of-00003.parquet"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError):
        write_raw(huggingface(repository), tmp_path / "raw")
    last.write_bytes(content)
    flip_a_bit(tmp_path / "raw.part/part-00000.parquet")
    write_raw(huggingface(repository), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw") == read_manifest(tmp_path / "uninterrupted")


def test_the_progress_tells_bytes_and_documents(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.progress.SECONDS_BETWEEN_LINES", 0.0)
    write_raw(huggingface(repository, documents=2500), tmp_path / "raw")
    lines = [line for line in capsys.readouterr().err.splitlines() if "documents" in line]
    assert re.fullmatch(r".*: 0.00 of .*, 1,000 of 2,500 documents", lines[0])
    assert re.fullmatch(r".*: (\S+) of \1, \S+B/s, 00:00 left, 2,500 of 2,500 documents", lines[-1])


def test_huggingface_reads_other_kinds_of_files_and_joined_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_text(tmp_path / f"corpus/{split}.jsonl", f'{{"body": "of {split}", "id": 1}}\n')
    write_raw(huggingface(tmp_path / "corpus", split="train+test"), tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["of train", "of test"]
