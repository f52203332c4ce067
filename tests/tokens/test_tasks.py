"""A large corpus is encoded by several processes, to the same bytes as by one."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from pipeline.config.errors import UserError, machine_refusal
from pipeline.corpus.documents import Span, write_jsonl, write_parquet
from pipeline.corpus.sources import DocumentSplit, Split, TailSplit
from pipeline.storage.files import write_text
from pipeline.tokens import parts, tasks, write_shards
from pipeline.tokens.parts import PartFiles
from pipeline.tokens.tokenizers import load_tokenizer
from pipeline.tokens.write_shards import TASKS, tokenize
from tests import tiny

TAIL = TailSplit(by="tail", fraction=0.3)
BY_DOCUMENTS = DocumentSplit(by="documents", fraction=0.3, seed=1)
SPLITS = {"tail": TAIL, "documents": BY_DOCUMENTS}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Documents in files of each kind, one of them longer than a piece."""
    raw = tmp_path / "raw"
    raw.mkdir()
    texts = [tiny.text(20 + number * number * 7 % 900) + "naïve 😀" for number in range(40)]
    write_jsonl(raw / "a.jsonl", ({"text": text} for text in ["", *texts, "", tiny.text(100_000)]))
    write_parquet(raw / "b.parquet", reversed(texts))
    write_text(raw / "c.txt", texts[7])
    write_text(raw / "d.txt", tiny.text(90_000))
    return raw


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokenized(raw: Path, split: Split, name: str = "byte", folder: str = "direct", **how: object) -> Path:
    target = raw.parent / folder
    tokenize(raw, split, name, 300, 10_000, target, **how)  # type: ignore[arg-type]
    return target


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any corpus counts as large."""
    monkeypatch.setattr(write_shards, "LARGE_CORPUS", 0)
    monkeypatch.setattr(parts, "PART_BYTES", 20_000)


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_the_bytes_are_those_of_one_process_wherever_the_parts_begin(
    raw: Path, monkeypatch: pytest.MonkeyPatch, without_fsync: None, name: str, split: Split
) -> None:
    def run_here(
        executor: str, all_parts: Sequence[Iterable[Span]], end: int | None, workers: object, folder: Path
    ) -> None:
        for number, part in enumerate(all_parts):
            PartFiles(folder, number).write(part, load_tokenizer(folder.parent), end)

    expected = files(tokenized(raw, split, name))
    monkeypatch.setattr(tasks, "run_tasks", run_here)
    monkeypatch.setattr(write_shards, "LARGE_CORPUS", 0)
    monkeypatch.setattr(parts, "READ_IDS", 1000)
    for part_bytes in (700, 5_003, 60_000):
        monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
        assert files(tokenized(raw, split, name, "parts")) == expected


@pytest.mark.parametrize(("workers", "split"), [(1, BY_DOCUMENTS), (2, TAIL)])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    raw: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, workers: int, split: Split
) -> None:
    expected = files(tokenized(raw, split))
    request.getfixturevalue("large")
    assert files(tokenized(raw, split, folder="parts", workers=workers)) == expected
    assert {path.name for path in raw.parent.iterdir()} == {"raw", "direct", "parts"}


def test_a_killed_worker_fails_in_one_line_and_a_rerun_encodes_what_is_missing(
    raw: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = files(tokenized(raw, TAIL))
    request.getfixturevalue("large")
    completions = raw.parent / "parts.part" / TASKS / "completions"

    def kill() -> None:
        while not completions.exists() or len(list(completions.iterdir())) < 2:
            time.sleep(0.001)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildProcessError) as error:
        tokenized(raw, TAIL, folder="parts", workers=1)
    killer.join()
    refusal = machine_refusal(error.value)
    assert refusal and refusal.startswith("a worker was killed") and "\n" not in refusal
    done = {path.name for path in completions.iterdir()}
    number = len(parts.large_parts(raw))
    assert 2 <= len(done) < number
    # One that is finished was damaged in the meantime.
    damaged = completions.parent / f"{min(done)}.bin"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert files(tokenized(raw, TAIL, folder="parts", workers=2)) == expected
    assert f"{len(done) - 1} of {number} parts are encoded already" in capsys.readouterr().err
    assert not multiprocessing.active_children()


def test_text_that_cannot_be_read_is_named_in_one_line(raw: Path, large: None) -> None:
    path = raw / "a.jsonl"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b'{"text": 3}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl byte {size}: no text in 'text'; "):
        tokenized(raw, TAIL, folder="parts", workers=2)
    assert {path.name for path in raw.parent.iterdir()} == {"raw"}


# Runs the tasks of a job array one after another; the first of them is killed if there is a file `kill`.
SBATCH = """\
#!{python}
import os, re, subprocess, sys
from pathlib import Path
folder = Path(__file__).parent
script = Path(sys.argv[-1]).read_text()
with open(folder / "jobs", "a") as jobs:
    jobs.write(script)
(last,) = re.findall(r"^#SBATCH --array=0-(\\d+)", script, re.MULTILINE)
print("Submitted batch job 17", flush=True)
statuses = []
for number in range(int(last) + 1):
    if (folder / "kill").exists():
        (folder / "kill").unlink()
        statuses.append(137)
        continue
    environment = os.environ | {{"SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "here"}}
    with open(folder / "log", "a") as log:
        ended = subprocess.run(["bash", sys.argv[-1]], env=environment, stdout=log, stderr=log)
    statuses.append(ended.returncode)
sys.exit(max(statuses))
"""


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with commands like Slurm's, which run a job here; `jobs` is what was submitted."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, text in (
        ("sbatch", SBATCH.format(python=sys.executable)),
        ("scontrol", "#!/bin/sh\necho here\n"),
    ):
        write_text(folder / name, text)
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    monkeypatch.chdir(tiny.ROOT)
    return folder


def test_slurm_runs_a_job_array_and_a_rerun_only_what_failed(
    raw: Path, cluster: Path, large: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as context:
        context.setattr(write_shards, "LARGE_CORPUS", 1 << 40)
        expected = files(tokenized(raw, TAIL))
    monkeypatch.setattr(parts, "PART_BYTES", 300_000)
    number = len(parts.large_parts(raw))
    (cluster / "kill").touch()
    with pytest.raises(ChildProcessError, match=rf"1 part of {number} failed \(see .*/task_00000\.log\)"):
        tokenized(raw, TAIL, folder="parts", executor="slurm", workers=2)
    assert files(tokenized(raw, TAIL, folder="parts", executor="slurm")) == expected
    arrays = re.findall(r"^#SBATCH --array=(.*)$", (cluster / "jobs").read_text(), re.MULTILINE)
    assert arrays == [f"0-{number - 1}%2", "0-0"]
    assert "#SBATCH --wait\n" in (cluster / "jobs").read_text()
    assert f"{number - 1} of {number} parts are encoded already" in capfd.readouterr().err


def test_slurm_that_is_not_there_or_refuses_is_an_error_of_one_line(
    raw: Path, cluster: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error() -> str:
        with pytest.raises(UserError) as raised:
            tokenized(raw, TAIL, folder="parts", executor="slurm")
        assert {path.name for path in raw.parent.iterdir()} == {"raw"}
        return str(raised.value)

    write_text(cluster / "sbatch", "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    (cluster / "sbatch").chmod(0o700)
    assert "sbatch refused the job" in error()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert "this runs in a job array" in error()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    monkeypatch.setenv("PATH", str(raw))
    assert "there is no sbatch here" in error()
