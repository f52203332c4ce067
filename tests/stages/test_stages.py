"""The stages as a user calls them: what they leave behind, how they stop, and one line for bad input."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.command_line import FROM_MAKE
from pipeline.config.paths import MODEL
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.serve.samples import RULE, read_samples
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_json, write_text
from pipeline.weights.open import open_model
from stages.train import main as train
from tests import tiny
from tests.conftest import Ended
from tests.train.runs import flip_a_bit

Stage = Callable[..., Ended]

STAGES = sorted(path.stem for path in (tiny.ROOT / "stages").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def trained_template(tmp_path_factory: pytest.TempPathFactory, tiny_tokens: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("DVC_ROOT", raising=False)
        write_text(Path("params.yaml"), tiny.params_yaml("nanogpt"))
        shutil.copytree(tiny_tokens, "data/tiny/char")
        train(tiny.OVERRIDES)
    yield folder


@pytest.fixture
def trained(trained_template: Path, tiny_project: Path) -> Path:
    """The current folder is a project whose tiny model is trained."""
    for name in ("results", "runs"):
        shutil.copytree(trained_template / name, tiny_project / name)
    return tiny_project


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "hashes.json")  # what is only remembered
    }


def error_line(ended: Ended) -> str:
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n")
    return ended.err


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_explains_itself(stage: Stage, name: str) -> None:
    ended = stage(name, "--help")
    assert ended.status == 0
    assert ended.out.startswith("Usage: ")
    doc = importlib.import_module(f"stages.{name}").main.__doc__
    assert " ".join(doc.split()) in " ".join(ended.out.split())


def test_training_leaves_a_model_its_figures_and_its_log(tiny_project: Path, stage: Stage) -> None:
    ended = stage("train")
    assert ended.status == 0
    assert ended.out.startswith("results/metrics.json: val loss ")
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert list(metrics) == ["val_loss", "val_bpb", "best_step", "tokens", "seconds", "params"]
    finished = json.loads(Path("results/run.json").read_text())["finished"]
    assert finished.keys() >= {"perplexity", "train_loss", "last_val_loss", "device", "torch", "init_from"}
    assert Path("results/log.csv").read_text().startswith("step,tokens,train_loss,val_loss,val_bpb,lr,")
    assert Path("results/live.csv").read_text() == Path("results/log.csv").read_text()
    saved = ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]
    assert sorted(os.listdir("results/model")) == saved
    assert "already finished" not in ended.err
    model = sha256_file(Path("results/model/model.safetensors"))

    shutil.rmtree("results")  # as DVC does before it runs a stage
    again = stage("train")
    assert "already finished, nothing to train" in again.err
    assert again.out == ended.out
    assert sha256_file(Path("results/model/model.safetensors")) == model


def test_training_replaces_read_only_links_into_a_cache(trained: Path, stage: Stage) -> None:
    cache = trained / "cache"
    for name in ("log.csv", "metrics.json", "model/model.safetensors"):
        cached = cache / name
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.hardlink_to(trained / "results" / name)
        cached.chmod(0o444)
    before = content(cache)
    assert stage("train", "-S", "train.max_iters=3").status == 0
    assert content(cache) == before
    assert json.loads(Path("results/run.json").read_text())["finished"]["steps"] == 3


def test_runs_stay_with_the_main_project(
    tiny_project: Path,
    stage: Stage,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DVC runs an experiment in a copy of the project and says in DVC_ROOT where the project is."""
    main_project = tmp_path_factory.mktemp("main")
    monkeypatch.setenv("DVC_ROOT", str(main_project))
    assert stage("train", "-S", "train.max_iters=1").status == 0
    assert not Path("runs").exists()
    assert len(list((main_project / "runs").iterdir())) == 1


def test_sampling_shows_and_saves_the_same_text(trained: Path, stage: Stage) -> None:
    ended = stage("sample", "--start", "the sea", "--out", "results/samples.txt")
    assert ended.status == 0
    texts = read_samples(Path("results/samples.txt"), open_model(MODEL).sha256)
    assert ended.out == "".join(f"{text}\n{RULE}\n" for text in texts)
    samples = ended.out.split("\n---------------\n")
    assert samples.pop() == ""
    assert [len(sample) for sample in samples] == [len("the sea") + 20] * 2
    assert all(sample.startswith("the sea") for sample in samples)
    assert samples[0] != samples[1]
    assert stage("sample", "--start", "the sea").out == ended.out
    assert stage("sample", "--start", "the sea", "-S", "sample.seed=2").out != ended.out


def test_sampling_says_how_fast_it_was_but_not_in_the_file(trained: Path, stage: Stage) -> None:
    ended = stage("sample", "--out", "results/samples.txt")
    made = r"results/samples\.txt: 2 samples of 20 tokens in \d+\.\d s: [\d,]+ tokens/s, "
    assert re.fullmatch(made + r"first token after \d+\.\d\d s\n", ended.err)
    assert "tokens" not in Path("results/samples.txt").read_text()


def test_sampling_after_several_prompts_continues_each(trained: Path, stage: Stage) -> None:
    greedy = ("-S", "sample.greedy=true", "-S", "sample.num_samples=1")
    prompts = ["a", "the sea", "the old ship sinks"]
    alone = [stage("sample", "--start", prompt, *greedy).out for prompt in prompts]
    together = stage("sample", *(word for prompt in prompts for word in ("--start", prompt)), *greedy)
    assert together.out == "".join(alone)
    assert stage("sample", "--start", "a", "--start", "the sea").out.count(f"\n{RULE}\n") == 4
    assert "sample.start: character 'Q'" in error_line(stage("sample", "--start", "a", "--start", "Q"))


def test_make_reads_one_prompt_whatever_is_in_it(
    trained: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stage("sample", "--start", "the old sea\n").out
    monkeypatch.setenv(FROM_MAKE, "1")
    monkeypatch.setenv("START", "the old sea\n")
    assert stage("sample").out == expected


SLOW_TO_IMPORT = {"torch._dynamo", "torch._inductor", "sympy", "pyarrow", "transformers", "huggingface_hub"}
IMPORTED = """
import atexit, runpy, sys
atexit.register(lambda: print(*sorted(set(sys.modules) & SLOW)))
runpy.run_module("stages.NAME", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["train", "sample"])
def test_nothing_is_imported_that_is_slow_and_not_needed(trained: Path, name: str) -> None:
    code = IMPORTED.replace("SLOW", str(SLOW_TO_IMPORT)).replace("NAME", name)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == ""


def test_sampling_from_a_file_to_the_screen_only(trained: Path, stage: Stage) -> None:
    Path("prompt.txt").write_text("né\n" * 20)
    ended = stage("sample", "--start", "FILE:prompt.txt", "--out", "-", "-S", "sample.num_samples=1")
    assert ended.status == 0
    assert ended.out.startswith("né\n" * 20)
    assert not Path("results/samples.txt").exists()


def test_sampling_from_another_model(trained: Path, stage: Stage) -> None:
    shutil.move("results/model", "elsewhere")
    assert stage("sample", "--model", "elsewhere").status == 0


def test_depth_curve_ends_at_the_trained_model(trained: Path, stage: Stage) -> None:
    assert stage("depth_curve").status == 0
    rows = Path("results/depth.csv").read_text().splitlines()
    assert rows[0].startswith("depth,val_loss")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert float(rows[-1].split(",")[1]) == pytest.approx(metrics["val_loss"], abs=1e-5)
    for picture in ("results/depth.png", "results/loss.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert Path("results/stopping.csv").read_text() == "threshold,mean_depth,val_loss,perplexity,val_bpb\n"


def test_depth_curve_of_a_stopping_model_goes_beyond_its_depth(tiny_project: Path, stage: Stage) -> None:
    switches = ["recurrent_shared_weights", "learned_stopping", "learned_stopping_use_threshold"]
    overrides = [f"model.{switch}=true" for switch in switches]
    depth = ["model.recurrent_depth=3", "model.learned_stopping_threshold=0.6"]
    train([*tiny.OVERRIDES, *overrides, *depth, "train.max_iters=3"])
    ended = stage("depth_curve", "-S", "depth.stopping_thresholds=[0.9, 0.2]")
    assert ended.status == 0 and "results/stopping.csv" in ended.out
    rows = [row.split(",") for row in Path("results/depth.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    points = [row.split(",") for row in Path("results/stopping.csv").read_text().splitlines()]
    assert [point[0] for point in points] == ["threshold", "0.2", "0.6", "0.9"]
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert float(points[2][2]) == pytest.approx(metrics["val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train", "-S train.max_iter=5", "unknown parameter train.max_iter; did you mean train.max_iters?"),
        ("train", "-S model.n_embd=15", "n_embd = 15 is not divisible by n_head = 2; try n_embd = 16"),
        ("train", "-S model.dropout=1.0", "model.dropout = 1.0: should be less than 1"),
        ("train", "-S train.max_iters=ten", "train.max_iters = 'ten': should be a valid integer"),
        (
            "train",
            "-S model.block_size=600",
            "model.block_size = 600 needs 601 tokens, but the val split has 553;",
        ),
        (
            "train",
            "-S data.dataset=other",
            "data/other/char/manifest.json: no such file; run `dvc repro tokenize`",
        ),
        (
            "train",
            "-S train.init_from=resume -S train.seed=1",
            "train.init_from = resume: no checkpoint in runs/",
        ),
        (
            "train",
            "-S train.init_from=gpt2",
            "model.n_layer = 2, but train.init_from = gpt2 has 12 (also different: ",
        ),
        (
            "download",
            "-S data.dataset=tini",
            "data.dataset = tini: no data/tini/dataset.yaml; did you mean tiny?",
        ),
        ("tokenize", "", "data/tiny/raw: missing dataset; run `dvc repro download` first"),
        ("sample", "-S sample.temperature=0.0", "sample.temperature = 0.0: should be greater than 0"),
        ("sample", "-S sample.top_k=0", "sample.top_k = 0: should be greater than or equal to 1"),
        ("sample", "--start Q", "sample.start: character 'Q' (U+0051, position 0) is not in the vocabulary"),
        ("sample", "--start FILE:nowhere.txt", "sample.start = FILE:nowhere.txt: "),
        ("sample", "--model nowhere", "model nowhere: no such folder; train a model first"),
        (
            "depth_curve",
            "-S tokenizer.name=byte",
            "data/tiny/byte/manifest.json: no such file; run `dvc repro",
        ),
        ("eval_baselines", "fourgram", "model fourgram: no such folder; "),
    ],
)
def test_bad_input_gets_one_line_and_costs_nothing(
    trained: Path, stage: Stage, name: str, arguments: str, expected: str
) -> None:
    Path("mine.txt").write_text("text")
    write_spec(spec_for_text("mine.txt"), Path("data/tiny/dataset.yaml"))
    before = content(trained)
    assert expected in error_line(stage(name, *arguments.split()))
    assert content(trained) == before


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "command",
    [
        "check -S train.init_from={}",
        "check -S baselines.models=[{}]",
        "depth_curve",
        "eval_baselines {}",
        "eval_zeroshot lambada --model {}",
        "export --model {}",
        "export --format nanogpt --model {}",
        "finetune_on mine.txt --model {} --no-run",
        "sample --model {}",
        "start_from {}",
        "tokenize -S tokenizer.name=pretrained -S tokenizer.model={}",
        "train -S train.init_from={}",
    ],
)
def test_no_command_uses_a_model_with_a_flipped_bit(
    trained: Path, stage: Stage, command: str, damaged: str
) -> None:
    Path("mine.txt").write_text("text")
    write_spec(spec_for_text("mine.txt"), Path("data/tiny/dataset.yaml"))
    write_text(Path("data/tiny/raw/mine.txt"), "text")
    shutil.copytree("results/model", "saved/mine")
    folder = "saved/mine" if "{}" in command else "results/model"
    flip_a_bit(Path(folder, damaged))
    before = content(trained)
    line = error_line(stage(*command.format(folder).split()))
    assert f"{folder}/{damaged}: not what was saved; make or copy the model again" in line
    assert content(trained) == before


def test_a_checkpoint_with_a_flipped_bit_is_no_model(trained: Path, stage: Stage) -> None:
    (checkpoint,) = Path("runs").glob("*/step-*")
    assert stage("sample", "--model", str(checkpoint)).status == 0
    flip_a_bit(checkpoint / "model.safetensors")
    assert f"{checkpoint}/model.safetensors: not what" in error_line(
        stage("sample", "--model", str(checkpoint))
    )


def test_a_model_changed_on_purpose_is_used_without_its_manifest(trained: Path, stage: Stage) -> None:
    path = Path("results/model/config.json")
    write_json(path, json.loads(path.read_text()) | {"dropout": 0.0})
    assert "(if you changed it yourself, remove results/model/manifest.json)" in error_line(stage("sample"))
    Path("results/model/manifest.json").unlink()
    assert stage("sample").status == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
@pytest.mark.parametrize("name", ["train", "sample", "depth_curve"])
def test_a_missing_gpu_gets_one_line(trained: Path, stage: Stage, name: str) -> None:
    before = content(trained)
    line = error_line(stage(name, "-S", "runtime.device=cuda"))
    assert "runtime.device = cuda: this machine has 0 usable CUDA GPUs" in line
    assert content(trained) == before


def truncate(shard: Path) -> None:
    os.truncate(shard, 100)


def edit(shard: Path) -> None:
    ids = np.fromfile(shard, dtype="<u2")
    ids[7] ^= 1
    ids.tofile(shard)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(truncate, "truncated shard, 100 bytes"), (edit, "edited shard"), (Path.unlink, "missing shard")],
)
def test_a_spoiled_shard_is_named(
    trained: Path, stage: Stage, split: str, spoil: Callable[[Path], None], expected: str
) -> None:
    shard = Path(f"data/tiny/char/{split}-00000.bin")
    spoil(shard)
    before = content(trained)
    assert f"error: {shard}: {expected}" in error_line(stage("train", "-S", "train.seed=1"))
    assert content(trained) == before


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "data/tiny/raw/mine.txt: empty file; "),
        (b"na\xefve", "data/tiny/raw/mine.txt: not UTF-8 at byte 2; "),
        (b"x", "data/tiny/raw: split.fraction leaves no "),
    ],
)
def test_unusable_text_is_named_and_earlier_tokens_stay(
    trained: Path, stage: Stage, raw: bytes, expected: str
) -> None:
    Path("mine.txt").write_text("text")
    write_spec(spec_for_text("mine.txt"), Path("data/tiny/dataset.yaml"))
    Path("data/tiny/raw").mkdir()
    Path("data/tiny/raw/mine.txt").write_bytes(raw)
    before = content(trained)
    assert expected in error_line(stage("tokenize"))
    assert content(trained) == before


def test_a_diverging_run_gets_one_line_after_its_progress(trained: Path, stage: Stage) -> None:
    before = content(Path("results"))
    ended = stage("train", "-S", "train.learning_rate=1e30", "-S", "train.decay_lr=false")
    assert ended.status == 3
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert errors == ended.err.splitlines()[-1:]
    assert "lower train.learning_rate (now 1e+30)" in errors[0]
    live = Path("results/live.csv")
    assert content(Path("results")) == before | {"live.csv": sha256_file(live)}
    assert "train_loss" in live.read_text()


LONG = [
    "train.max_iters=240",
    "train.lr_decay_iters=240",
    "train.eval_interval=60",
    "runtime.checkpoint_interval=25",
]


def start_training() -> subprocess.Popen[str]:
    arguments = [argument for override in LONG for argument in ("-S", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", *arguments],
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def logged_step(log: Path) -> int:
    lines = log.read_text().splitlines() if log.exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else -1


def test_a_run_stopped_in_every_way_ends_with_the_same_model(
    tiny_project: Path,
    stage: Stage,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C, SIGTERM, a closed terminal, then kill -9 somewhere in a training step, then left alone."""
    with monkeypatch.context() as patched:
        patched.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("uninterrupted")))
        train([*LONG])
    uninterrupted = sha256_file(Path("results/model/model.safetensors"))
    shutil.rmtree("results")

    for step, what in (
        (40, signal.SIGINT),
        (80, signal.SIGTERM),
        (120, signal.SIGHUP),
        (160, signal.SIGKILL),
    ):
        process = start_training()
        try:
            deadline = time.monotonic() + 60
            while not any(logged_step(log) >= step for log in Path("runs").glob("*/log.csv")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(what)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert "Traceback" not in err
        if what is signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + what
            assert "; run the same command to continue" in err.splitlines()[-1]
        assert os.listdir("results") == ["live.csv"]

    arguments = [argument for override in LONG for argument in ("-S", override)]
    ended = stage("train", *arguments)
    assert ended.status == 0
    assert ": continuing after step " in ended.err
    assert sha256_file(Path("results/model/model.safetensors")) == uninterrupted


def test_an_unreadable_prompt_is_known_before_training(
    tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    ended = stage("train", "-S", "sample.start=漢")
    assert ended.status == 2 and "'漢'" in ended.err
    assert not Path("runs").exists()


def test_check_finds_a_missing_dataset(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    ended = stage("check", "-S", "data.dataset=nowhere")
    assert ended.status == 2 and ended.err.count("\n") == 1 and "nowhere" in ended.err
