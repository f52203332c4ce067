"""Bad input, command by command and file by file: exit status 2, one line on stderr, and nothing changes.

For a new command or file format, add rows to ROWS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.storage.checksums import read_checked_json, sha256_file, write_checked_json
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import ByteTokenizer
from stages.train import main as train
from tests import tiny
from tests.conftest import Ended

PARAMS, SHARD = "params.yaml", "data/tiny/char/train-00000.bin"
DATASET, MANIFEST, TOKENIZER = "data/tiny/dataset.yaml", "data/tiny/char/manifest.json", "tokenizer.json"
MODEL, METRICS, RAW = "results/model", "results/metrics.json", "data/tiny/raw"
DEEP = "[" * 100_000
Spoil = Callable[[], object]


def nothing() -> None:
    pass


def holds(path: str, content: str | bytes) -> Spoil:
    """The file has this content."""

    def spoil() -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def ends(path: str, line: str) -> Spoil:
    """The file has this line more."""
    return lambda: holds(path, Path(path).read_text() + line + "\n")()


def says(old: str, new: str, path: str = PARAMS) -> Spoil:
    """The file has `new` in place of `old`."""

    def spoil() -> None:
        text = Path(path).read_text()
        assert old in text
        holds(path, text.replace(old, new, 1))()

    return spoil


def in_dvc(dvc_lock: bool) -> Spoil:
    """The project is one of DVC, perhaps with a stage that ran."""

    def spoil() -> None:
        holds(".dvc/config", "[core]\n    no_scm = true\n")()
        shutil.copy(tiny.ROOT / "dvc.yaml", "dvc.yaml")
        if dvc_lock:
            holds("dvc.lock", "schema: '2.0'\nstages: {}\n")()

    return spoil


def is_missing(path: str) -> Spoil:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else os.remove(path)


def params_are_missing() -> None:
    """In a project, that is; elsewhere a model can be sampled without."""
    Path("dvc.yaml").touch()
    os.remove(PARAMS)


def is_folder(path: str) -> Spoil:
    def spoil() -> None:
        Path(path).unlink(missing_ok=True)
        Path(path).mkdir(parents=True)

    return spoil


def is_fifo(path: str) -> Spoil:
    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)

    return spoil


def is_cut(path: str, size: int) -> Spoil:
    return lambda: holds(path, Path(path).read_bytes()[:size])()


def has_ids(path: str, changed: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """The shard of 16-bit ids has others in their place."""
    return lambda: holds(path, changed(np.fromfile(path, "<u2")).tobytes())()


def is_another_tokenizer() -> None:
    Path(f"data/tiny/char/{TOKENIZER}").unlink()
    ByteTokenizer(end_of_text=True).save(Path("data/tiny/char"))


def is_sparse(path: str) -> Spoil:
    """The file is larger than what is read as a whole."""

    def spoil() -> None:
        Path(path).touch()
        os.truncate(path, 1 << 29)

    return spoil


def without_manifest(weights: bytes) -> Spoil:
    """The model has these weights, and nothing that tells them from others."""

    def spoil() -> None:
        holds(f"{MODEL}/model.safetensors", weights)()
        is_missing(f"{MODEL}/manifest.json")()

    return spoil


def has_variable(name: str, value: str) -> Spoil:
    return lambda: os.environ.update({name: value})


class Code:
    """Its pickle would write a file if anything in it were executed."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def run_with_log(log: str) -> Spoil:
    """The only run of the project has this log."""

    def spoil() -> None:
        facts = read_checked_json(Path("results/run.json"), "")
        write_checked_json(Path("runs/0f4a/run.json"), facts)
        holds("runs/0f4a/log.csv", log)()

    return spoil


def checkpoint(**changes: int) -> Spoil:
    arguments = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 4, "bias": True, "vocab_size": 9}
    return lambda: torch.save({"model": {}, "model_args": {**arguments, **changes}}, "ckpt.pt")


@dataclass(frozen=True)
class Row:
    id: str
    spoil: Spoil
    command: str  # with its arguments, separated by spaces
    line: str  # a part of the line on stderr


def rows() -> Iterator[Row]:
    for id, spoil, line in (
        ("folder", is_folder(PARAMS), "is a folder"),
        ("missing", params_are_missing, "no such file"),
        ("fifo", is_fifo(PARAMS), "not a regular file"),
        ("huge", is_sparse(PARAMS), "shorten it"),
        ("latin-1", holds(PARAMS, b"data: \xe9\n"), "UTF-8"),
        ("nul", holds(PARAMS, "data: \0\n"), "YAML"),
        ("deep", holds(PARAMS, f"data: {DEEP}"), "nested too deep"),
        ("alias", holds(PARAMS, "a: &a [1, 1]\nb: [*a, *a]\n"), "alias"),
        ("duplicate", holds(PARAMS, "data: 1\ndata: 2\n"), "duplicate"),
        ("empty", holds(PARAMS, ""), "expected `key: value` lines"),
        ("list", holds(PARAMS, "- a\n"), "expected `key: value` lines"),
        ("unclosed", holds(PARAMS, "data: [1\n"), "YAML"),
        ("date", holds(PARAMS, "data: 2020-99-99\n"), "params.yaml"),
        ("unknown", ends(PARAMS, "tran: {}"), "unknown parameter tran"),
        ("type", says("block_size:", "block_size: ten #"), "block_size"),
        ("float", says("n_layer:", "n_layer: 1.5 #"), "n_layer"),
        ("infinite", says("learning_rate:", "learning_rate: .inf #"), "finite"),
        ("not-a-number", says("dropout:", "dropout: .nan #"), "dropout"),
        ("5000-digits", says("max_iters:", f"max_iters: {'9' * 5000} #"), "params.yaml"),
        ("65-bits", says("seed:", f"seed: {2**64} #"), "seed"),
    ):
        for command in ("train", "summary", "sample"):
            yield Row(f"params-{id}-{command}", spoil, command, line)
    for command in (
        "download",
        "tokenize",
        "depth_curve",
        "eval_baselines uniform",
        "eval_zeroshot lambada",
        "baselines",
        "repro",
        "pipeline.cli.eval_zeroshot",
        "train_on notes.txt",
        "finetune_on notes.txt",
        "start_from results/model",
        "sizing",
        "preset gpt2",
        "lm_eval arc_easy",
    ):
        yield Row(f"params-deep-{command}", holds(PARAMS, f"data: {DEEP}"), command, "nested too deep")

    for override, line in (
        ("train", "expected section.key=value"),
        ("train.max_iters", "expected section.key=value"),
        ("train.max_iter=1", "did you mean train.max_iters"),
        ("train.max_iters=", "max_iters"),
        ("train.max_iters=-1", "max_iters"),
        ("train.max_iters=ten", "max_iters"),
        (f"train.max_iters={'9' * 5000}", "max_iters"),
        (f"train.max_iters={DEEP}", "max_iters"),
        ("train.seed=-1", "seed"),
        ("train.learning_rate=.inf", "learning_rate"),
        ("train.init_from=nowhere/x", "nowhere/x"),
        ("train.init_from=a\0b", "init_from"),
        ("train.beta1=1.0", "beta1"),
        ("train.warmup_iters=99999", "warmup_iters"),
        ("train.cooldown_share=1.5", "cooldown_share"),
        ("train.min_lr=9.0", "min_lr"),
        ("train.dtype=int8", "dtype"),
        ("model.n_layer=0", "n_layer"),
        ("model.n_layer=1000000000", "n_layer"),
        ("model.n_head=7", "n_head"),
        ("runtime.threads=1000000", "threads"),
        ("runtime.device=tpu", "device"),
        ("runtime.keep_checkpoints=1", "keep_checkpoints"),
        ("data.dataset=../x", "dataset"),
        ("data.dataset=other", "other"),
        ("tokenizer.name=words", "tokenizer.name"),
        ("tokenizer.vocab_size=1", "vocab_size"),
        ("baselines.models=[]", "baselines.models"),
        ("baselines.models=[quadgram]", "quadgram"),
        ("baselines.eval_tokens=0", "baselines.eval_tokens"),
        ("zeroshot.tasks=[chess]", "zeroshot.tasks"),
        ("zeroshot.models=[a/../b]", "a/../b"),
        ("depth.stopping_thresholds=[2.0]", "stopping_thresholds"),
        ("log.log_interval=0", "log_interval"),
        ("log.trackers=[csv,tensorbord]", "log.trackers.1 = 'tensorbord'"),
        ("log.trackers=wandb", "log.trackers"),
        ("log.tensorboard_dir=params.yaml", "log.tensorboard_dir = params.yaml: not a folder"),
        ("log.wandb_project=a/b", "wandb_project = 'a/b'"),
        ("log.wandb_project=", "wandb_project"),
        (f"log.wandb_project={'a' * 129}", "wandb_project"),
        (f"log.wandb_run_name={'a' * 129}", "wandb_run_name"),
        ("log.health_interval=0", "health_interval"),
        ("log.health_interval=-1", "health_interval"),
        ("log.health_interval=often", "health_interval"),
        ("sample.start=", "sample.start"),
        ("sample.recurrent_depth=3", "no loop"),
        ("depth.max=0", "depth.max"),
        ("depth.max=3", "no loop"),
    ):
        yield Row(f"override-{override[:40]}", nothing, f"train -S {override}", line)
    for override, line in (
        ("sample.num_samples=1000000000", "num_samples"),
        ("sample.max_new_tokens=0", "max_new_tokens"),
        ("sample.temperature=0.0", "temperature"),
        ("sample.top_k=0", "top_k"),
        ("sample.top_p=1.5", "top_p"),
    ):
        yield Row(f"override-{override}", nothing, f"sample -S {override}", line)

    for start, spoil, line in (
        ("FILE:none", nothing, "no such file"),
        ("FILE:results", nothing, "is a folder"),
        ("FILE:fifo", is_fifo("fifo"), "not a regular file"),
        ("FILE:/dev/zero", nothing, "not a regular file"),
        ("FILE:huge", is_sparse("huge"), "shorten it"),
        ("FILE:binary", holds("binary", b"\xff\xfe"), "UTF-8"),
        ("FILE:a\0b", nothing, "not a file's name"),
        ("FILE:empty", holds("empty", ""), "empty"),
        ("FILE:" + "x" * 300, nothing, "name another file"),
        ("ζ", nothing, "sample.start"),
    ):
        yield Row(f"prompt-{start[:20]}", spoil, f"sample --start {start}", line)
        yield Row(f"prompt-train-{start[:20]}", spoil, f"train -S sample.start={start}", line)

    for id, spoil, line in (
        ("missing", is_missing(MANIFEST), "no such file"),
        ("folder", is_folder(MANIFEST), "is a folder"),
        ("fifo", is_fifo(MANIFEST), "not a regular file"),
        ("empty", holds(MANIFEST, ""), "damaged"),
        ("deep", holds(MANIFEST, DEEP), "damaged"),
        ("list", holds(MANIFEST, "[]"), "damaged"),
        ("dtype", says("uint16", "uint32", MANIFEST), "damaged"),
        ("shard-missing", is_missing(SHARD), "missing shard"),
        ("shard-cut", is_cut(SHARD, 10), "truncated shard"),
        ("shard-of-32-bits", has_ids(SHARD, lambda ids: ids.astype("<u4")), "of uint32 ids, not uint16"),
        ("shard-of-another-tokenizer", has_ids(SHARD, lambda ids: ids ^ 1), "edited shard"),
        ("tokenizer-missing", is_missing(f"data/tiny/char/{TOKENIZER}"), "tokenizer.json"),
        ("tokenizer-deep", holds(f"data/tiny/char/{TOKENIZER}", DEEP), "tokenizer.json"),
        ("tokenizer-other", holds(f"data/tiny/char/{TOKENIZER}", "{}"), "tokenizer.json"),
        ("tokenizer-of-others", is_another_tokenizer, "not the tokenizer that made the shards"),
    ):
        yield Row(f"tokens-{id}", spoil, "train", line)

    for id, content, line in (
        ("empty", "", "dataset.yaml"),
        ("deep", f"source: {DEEP}", "nested too deep"),
        ("kind", "source: {kind: ftp}\n", "dataset.yaml"),
        ("unknown", "sauce: 1\n", "unknown parameter sauce"),
    ):
        for command in ("download", "tokenize"):
            yield Row(f"dataset-{id}-{command}", holds(DATASET, content), command, line)
    yield Row("dataset-missing", nothing, "download", "dataset.yaml")
    yield Row("raw-missing", nothing, "tokenize", "data/tiny")

    for file in ("config.json", "model.safetensors", TOKENIZER, "manifest.json"):
        path = f"{MODEL}/{file}"
        for command in ("sample", "eval_baselines results/model", "depth_curve", "export"):
            yield Row(f"model-{file}-cut-{command}", is_cut(path, 20), command, MODEL)
        if file != "manifest.json":  # who edits a model removes that
            yield Row(f"model-{file}-missing", is_missing(path), "sample", MODEL)
        yield Row(f"model-{file}-folder", is_folder(path), "sample", MODEL)
    yield Row("model-missing", is_missing(MODEL), "sample", "model")
    for id, size, header in (
        ("of-all-memory", 2**62, b"{}"),
        ("deep", 100_000, DEEP.encode()),
        ("of-other-types", 40, b'{"a": {"dtype": "X9", "shape": [1]}}    '),
        ("beyond-the-end", 60, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     '),
        ("negative", 60, b'{"a":{"dtype":"F32","shape":[-9],"data_offsets":[0,-36]}}   '),
    ):
        weights = size.to_bytes(8, "little") + header
        yield Row(f"tensors-{id}", without_manifest(weights), "sample", "model.safetensors")
    for name in ("nowhere", "a\0b", "../x", "", "/dev/null", "~nobody/x"):
        yield Row(f"model-named-{name}", nothing, f"sample --model {name}", "")

    for id, content in (("empty", ""), ("deep", DEEP), ("list", "[]"), ("object", "{}"), ("nul", "\0")):
        yield Row(f"metrics-{id}-summary", holds(METRICS, content), "summary", METRICS)
        path = "results/baselines/uniform.json"
        for command in ("summary", "depth_curve"):
            yield Row(f"baseline-{id}-{command}", holds(path, content), command, path)
        yield Row(f"metrics-{id}-export", holds(METRICS, content), "export", METRICS)
        yield Row(f"record-{id}-export", holds("results/run.json", content), "export", "results/run.json")
        yield Row(f"picture-{id}-export", holds("results/depth.png", content), "export", "results/depth.png")
        yield Row(
            f"upload-{id}", holds("results/export/config.json", content), "upload user/name", "results/export"
        )
    yield Row("metrics-missing", is_missing(METRICS), "summary", "no results yet")
    yield Row("metrics-folder", is_folder(METRICS), "summary", "is a folder")
    yield Row("metrics-text", holds(METRICS, json.dumps({"params": "many"})), "summary", METRICS)

    for id, spoil, line in (
        ("missing", nothing, "no such file"),
        ("folder", is_folder("ckpt.pt"), "folder"),
        ("empty", holds("ckpt.pt", ""), "ckpt.pt"),
        ("text", holds("ckpt.pt", "hello"), "ckpt.pt"),
        ("fifo", is_fifo("ckpt.pt"), "ckpt.pt"),
        ("code", lambda: torch.save({"model": Code()}, "ckpt.pt"), "ckpt.pt"),
        ("layers", checkpoint(n_layer=10**9), "ckpt.pt"),
        ("negative", checkpoint(n_embd=-1), "ckpt.pt"),
        ("nano-gpt-code", lambda: torch.save({"model_state_dict": Code()}, "ckpt.pt"), "ckpt.pt"),
        ("nano-gpt-empty", lambda: torch.save({"model_state_dict": {}, "config": {}}, "ckpt.pt"), "n_layer"),
    ):
        yield Row(f"ckpt-{id}", spoil, "import_checkpoint ckpt.pt", line)
    yield Row("meta-missing", checkpoint(), "import_checkpoint ckpt.pt --meta meta.pkl", "meta.pkl")

    for text, spoil in (
        ("none.txt", nothing),
        ("~nobody/x", nothing),
        ("a\0b", nothing),
        ("/dev/zero", nothing),
        ("fifo.txt", is_fifo("fifo.txt")),
        ("", nothing),
        ("image.png", holds("image.png", "x")),
        ("empty", is_folder("empty")),
        ("bytes.txt", holds("bytes.txt", b"\xff\xff")),
        ("empty.txt", holds("empty.txt", "")),
        ("deep.jsonl", holds("deep.jsonl", DEEP)),
        ("list.jsonl", holds("list.jsonl", "[]\n")),
        ("number.jsonl", holds("number.jsonl", '{"text": 1}\n')),
        ("digits.jsonl", holds("digits.jsonl", '{"text": "a", "id": ' + 5000 * "9" + "}\n")),
        ("other.jsonl", holds("other.jsonl", '{"content": "a"}\n')),
        ("empty.parquet", holds("empty.parquet", "")),
        ("text.parquet", holds("text.parquet", "PAR1 and so on")),
        ("cut.parquet", holds("cut.parquet", b"PAR1" + bytes(64) + b"\x40\0\0\0PAR1")),
    ):
        yield Row(f"text-{text}", spoil, f"train_on {text} --no-run", "")
        yield Row(f"finetune-{text}", spoil, f"finetune_on {text} --model results/model --no-run", "")

    for variable in ("XDG_CACHE_HOME", "HOME", "PIPELINE_MIRROR"):
        spoil = has_variable(variable, "/dev/null/x")
        yield Row(f"variable-{variable}", spoil, "eval_baselines gpt2", "")
    many = f"--limit {10**20}"
    yield Row("limit-huge", nothing, f"eval_zeroshot lambada {many}", "--limit")
    yield Row("limit-huge-cli", nothing, f"pipeline.cli.eval_zeroshot lambada {many}", "--limit")
    yield Row("limit-zero", nothing, "eval_zeroshot lambada --limit 0", "--limit")
    yield Row("limit-text", nothing, "eval_zeroshot lambada --limit all", "--limit")
    yield Row("task-unknown", nothing, "eval_zeroshot chess", "chess")
    yield Row("task-folder", nothing, "eval_zeroshot lambada --file results", "folder")
    yield Row("task-fifo", is_fifo("fifo"), "eval_zeroshot lambada --file fifo", "fifo")
    yield Row("task-deep", holds("deep", DEEP), "eval_zeroshot lambada --file deep", "deep")
    yield Row("sample-out-folder", nothing, "sample --out results", "results")
    yield Row("sample-out-file", nothing, "sample --out params.yaml/x", "params.yaml")
    yield Row("zeroshot-out-folder", nothing, "eval_zeroshot lambada --out results", "results")
    yield Row("baseline-out-file", nothing, "eval_baselines uniform --out params.yaml", "params.yaml")
    yield Row("import-out-file", checkpoint(), "import_checkpoint ckpt.pt --out params.yaml", "params.yaml")
    yield Row("baseline-unknown", nothing, "eval_baselines quadgram", "quadgram")
    yield Row("experiments-without-git", nothing, "experiments", "no git repository")
    yield Row("experiment-without-git", nothing, "experiment model.n_layer=1", "no git repository")
    for change, line in (
        ("model.n_layr=1", "did you mean model.n_layer"),
        ("model.n_layer", "expected section.key=value"),
        ("model.n_layer=two", "n_layer"),
        ("model.n_layer=1", "no results"),
    ):
        yield Row(f"experiment-{change}", is_folder(".git"), f"experiment {change}", line)
    yield Row("experiment-name", is_folder(".git"), "experiment model.n_layer=1 --name a/b", "NAME=a/b")
    for id, options, line in (
        ("one-size", "--sizes 1x8", "1 different sizes"),
        ("same-sizes", "--sizes 1x8,1x8,2x8", "2 different sizes"),
        ("size-text", "--sizes large,small,tiny", "--sizes large,small,tiny: write"),
        ("size-zero", "--sizes 0x8,1x8,2x8", "--sizes 0x8,1x8,2x8: write"),
        ("size-width", "--sizes 1x8,1x16,1x20", "size 1x20"),
        ("one-budget", "--tokens 1k", "1 different token budgets"),
        ("negative", "--tokens=-1k,2k,3k", "--tokens -1k,2k,3k: write"),
        ("zero", "--tokens 0,2k,3k", "--tokens 0,2k,3k: write"),
        ("less-than-a-step", "--tokens 1,2k,3k", "less than a step"),
        ("flops", "--flops=-1", "--flops"),
        ("flops-not-a-number", "--flops nan", "--flops"),
        ("hours", "--hours 0", "--hours"),
        ("hours-infinite", "--hours inf", "--hours"),
        ("jobs", "--jobs 0", "--jobs"),
        ("dataset", "-S data.dataset=other", "data/other/char/manifest.json: no such file"),
        ("start", "-S train.init_from=resume", "train.init_from = resume"),
    ):
        yield Row(f"scaling-{id}", nothing, f"pipeline.cli.scaling {options}", line)
    yield Row("preset-unknown", nothing, "preset gpt5", "gpt5")
    yield Row("preset-path", nothing, "preset ../params", "../params")
    yield Row("sizing-unknown", nothing, "sizing --preset gpt5", "gpt5")
    yield Row("push-data-nothing", nothing, "push_data --remote shared", "nothing to push")
    for command in ("push_data", "pull_data"):
        dvc = in_dvc(dvc_lock=command == "push_data")
        for id, remote, line in (
            ("unknown", " --remote shared", "REMOTE=shared: no such remote"),
            ("none", "", "no remote"),
            ("kind", " --remote gopher://host/x", "Unsupported URL type"),
            ("http", " --remote http://127.0.0.1:9/x", "no record of runs"),
        ):
            yield Row(f"{command}-{id}", dvc, f"{command}{remote}", line)
    report = "pipeline.cli.report"
    logless = run_with_log("step,tokens,train_loss\n")
    yield Row("report-nothing", is_missing(METRICS), report, "no results yet")
    yield Row("report-unknown-run", nothing, f"{report} 0f4a", "RUNS=0f4a: no run and no experiment")
    yield Row("report-path", nothing, f"{report} ../x", "RUNS=../x")
    yield Row("report-without-log", logless, f"{report} 0f4a", "a run without logs")
    yield Row("report-damaged-log", run_with_log("a,b\n1\n2,x\n"), f"{report} 0f4a", "not a run's log")
    yield Row("report-many-runs", nothing, f"{report} {' '.join('abcdefghi')}", "9 runs; name 8 at most")
    yield Row("report-metrics", holds(METRICS, "[]"), "report", METRICS)
    yield Row("report-samples", holds("results/samples.txt", "text"), "report", "results/samples.txt")
    yield Row("report-picture", holds("results/depth.png", ""), "report", "results/depth.png")
    yield Row("report-baseline", holds("results/baselines/uniform.json", "{}"), "report", "uniform.json")
    for arguments, line in (
        ("nowhere", "model nowhere"),
        ("results/model nowhere", "model nowhere"),
        ("--port 70000", "--port"),
        ("--port -1", "--port"),
        ("--streams 0", "--streams"),
        ("--streams 2000", "--streams"),
        ("--waiting none", "--waiting"),
        ("--host a..b", "host = a..b"),
    ):
        yield Row(
            f"serve-{arguments}",
            nothing,
            f"serve {arguments}" + " --port 0" * ("--port" not in arguments),
            line,
        )
    yield Row("play-model", nothing, "play --model nowhere", "model nowhere")
    yield Row("play-depth", nothing, "play -S sample.recurrent_depth=2", "no loop")
    yield Row("upload-nothing", nothing, "upload user/name", "results/export")
    yield Row("start-from-nowhere", nothing, "start_from nowhere", "nowhere")
    yield Row("option-unknown", nothing, "train --faster", "--faster")
    yield Row("argument-extra", nothing, "train now", "now")


ROWS = list(rows())


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, tiny_tokens: Path) -> Path:
    """A project whose tiny model is trained; not to be written to."""
    folder = tmp_path_factory.mktemp("bad-inputs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("DVC_ROOT", raising=False)
        write_text(Path(PARAMS), tiny.params_yaml())
        shutil.copytree(tiny_tokens, "data/tiny/char")
        train(tiny.OVERRIDES)
    return folder


@pytest.fixture
def project(trained_once: Path, tiny_project: Path) -> Path:
    """The current folder is a project whose tiny model is trained, with hard links as DVC makes them."""
    shutil.copytree(trained_once / "results", "results", copy_function=os.link)
    shutil.copytree(tiny.ROOT / "presets", "presets", copy_function=os.symlink)
    write_text(Path("notes.txt"), tiny.text())
    return tiny_project


@contextmanager
def ending_in(seconds: int) -> Iterator[None]:
    """Fail if the body blocks, as one that opens a FIFO does."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content() -> dict[str, str]:
    """What each path in the current folder is: its hash, or the kind of what is no regular file."""
    return {
        str(path): sha256_file(path) if path.is_file() else "folder" if path.is_dir() else "other"
        for path in sorted(Path().rglob("*"))
        if ".dvc" not in path.parts and path.name != "lock" and not path.name.endswith(".lock")
    }


def test_enough_rows() -> None:
    assert len(ROWS) >= 120
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row.id)[1:-1])
def test_bad_input_is_one_line_and_changes_nothing(
    row: Row, project: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("XDG_CACHE_HOME", "HOME", "PIPELINE_MIRROR"):
        monkeypatch.setenv(name, str(project / ".dvc"))
    row.spoil()
    before = content()
    with ending_in(8):
        ended = stage(*row.command.split(" "))
    assert ended.status == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert row.line in ended.err
    assert content() == before
