"""Training learns, and ends with the same bits however it was stopped on the way."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.model.build import build_gpt
from pipeline.model.load import load_model
from pipeline.optim.build import build_schedule
from pipeline.runtime.compiled import compiled
from pipeline.storage.checksums import sha256_file, write_manifest
from pipeline.tokens.tokenizers import CharTokenizer, load_tokenizer
from pipeline.train.fit import FittedRun
from pipeline.train.loop import Interrupted, Trainer
from tests import tiny
from tests.train.dying import DiesAfter, Killed
from tests.train.runs import (
    Runs,
    flip_a_bit,
    log_of,
    outcome,
    stop_at,
    stopped_at_each,
    weights_of,
)


def test_stopping_after_every_single_step_changes_nothing(runs: Runs) -> None:
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    uninterrupted = outcome(runs.elsewhere("uninterrupted")())
    assert uninterrupted["state"]["step"] == 20
    assert [int(row["step"]) for row in uninterrupted["log"]] == [0, 5, 6, 10, 12, 15, 18, 20]
    assert outcome(stopped_at_each(runs, list(range(20)))) == uninterrupted
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers


@pytest.mark.parametrize(
    "override",
    [
        "train.dtype=bfloat16",
        "train.dtype=float16",
        "train.grad_clip=0",
        "train.decay_lr=false",
        "train.always_save_checkpoint=true",
    ],
)
def test_stopping_changes_nothing_with(runs: Runs, override: str) -> None:
    uninterrupted = outcome(runs.elsewhere("uninterrupted")(override))
    assert outcome(stopped_at_each(runs, [3, 4, 13], override)) == uninterrupted


def test_float16_scale_resumes(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while gradients overflow and the scale falls, and in the middle of its way up again."""
    make = torch.amp.GradScaler.__init__

    def lively(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "init_scale": 2.0**24, "growth_interval": 3})

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", lively)
    scaled = ["train.dtype=float16", "log.log_interval=1"]
    uninterrupted = outcome(runs.elsewhere("uninterrupted")(*scaled))
    norms = [float(row["grad_norm"]) for row in uninterrupted["log"][1:]]
    assert not math.isfinite(norms[0])
    assert sum(map(math.isfinite, norms)) > 10
    assert outcome(stopped_at_each(runs, list(range(1, 20)), *scaled)) == uninterrupted


def test_a_kill_at_any_moment_changes_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation on folders and files in turn is the last one that a process does."""
    short = ["train.max_iters=5", "train.eval_interval=2", "runtime.checkpoint_interval=2"]
    uninterrupted = outcome(runs.elsewhere("uninterrupted")(*short))
    for moment in range(1000):
        attempt = runs.elsewhere(f"killed-{moment}")
        process = DiesAfter(moment)
        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "rmdir"):
                patched.setattr(os, name, process.wrap(getattr(os, name)))
            try:
                attempt(*short)
                break
            except Killed:
                pass
        assert outcome(attempt(*short)) == uninterrupted, f"killed at operation {moment}"
        leftovers = [path.name for path in attempt.only().iterdir() if path.suffix in (".tmp", ".old")]
        assert not leftovers
    assert moment > 25


def test_a_damaged_checkpoint_changes_nothing(runs: Runs) -> None:
    uninterrupted = outcome(runs.elsewhere("uninterrupted")())
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 14, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs()
    checkpoints = sorted(runs.only().glob("step-*"))
    assert [path.name for path in checkpoints] == ["step-000000012", "step-000000014"]
    flip_a_bit(checkpoints[1] / "model.safetensors")
    said: list[str] = []
    assert outcome(runs(say=said.append)) == uninterrupted
    assert said[0].endswith("/model.safetensors: not what was saved; set aside as step-000000014.damaged")
    assert said[1].endswith("continuing after step 12")


def test_damaged_settings_of_a_run_are_written_again(runs: Runs) -> None:
    finished = runs()
    facts, said = finished.run.facts(), list[str]()
    finished.run.about.write_text(finished.run.about.read_text().replace('"tokenizer"', '"tokeniser"'))
    again = runs(say=said.append)
    assert again.run.facts() == facts and again.metrics == finished.metrics
    assert any("run.json: not what was written; set aside as run.json.damaged" in line for line in said)
    assert (again.run.folder / "run.json.damaged").exists()
    again.run.about.unlink()
    assert runs().run.facts() == facts


def test_a_run_with_nothing_but_damaged_checkpoints_is_not_started_over(runs: Runs) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 14, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs()
    for path in runs.only().glob("step-*"):
        flip_a_bit(path / "optimizer.safetensors")
    before = {path: path.stat().st_mtime_ns for path in runs.only().rglob("*") if path.name != "lock"}
    with pytest.raises(UserError, match=r"step-000000014/optimizer.safetensors: not what was saved; restore"):
        runs()
    assert {path: path.stat().st_mtime_ns for path in runs.only().rglob("*") if path.name != "lock"} == before


def test_a_changed_tokenizer_is_refused_also_by_a_finished_run(runs: Runs, tmp_path: Path) -> None:
    """Else its model would be published with letters that mean others."""
    tokens = tmp_path / "tokens"
    shutil.copytree(runs.tokens, tokens)
    finished = Runs(tokens, runs.folder)
    finished("train.max_iters=1")
    characters = "".join(load_tokenizer(tokens).characters)  # type: ignore[attr-defined]
    swapped = characters.translate(str.maketrans("et", "te"))
    assert swapped != characters
    CharTokenizer(swapped, end_of_text=True).save(tokens)
    with pytest.raises(UserError, match="tokenizer.json: not the tokenizer that made the shards"):
        finished("train.max_iters=1")


@pytest.mark.parametrize(("saved", "folder"), [("best", "best"), ("last", "step-*")])
def test_a_finished_run_is_published_from_what_is_whole(
    runs: Runs, tmp_path: Path, saved: str, folder: str
) -> None:
    keep = [*NOISY, f"train.always_save_checkpoint={str(saved == 'last').lower()}"]
    runs(*keep).publish_model(tmp_path / "model")
    weights = (tmp_path / "model/model.safetensors").read_bytes()
    (checkpoint,) = runs.only().glob("step-*")
    flip_a_bit(checkpoint / "optimizer.safetensors")
    runs(*keep).publish_model(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == weights
    (source,) = runs.only().glob(folder)
    flip_a_bit(source / "model.safetensors")
    with pytest.raises(UserError, match=r"/model.safetensors: not what was saved; restore it from a copy"):
        runs(*keep)
    assert (runs.only() / "finished/metrics.json").exists() and (runs.only() / "log.csv").exists()


@pytest.mark.parametrize("regular", [True, False])
def test_a_best_model_that_is_also_the_last_is_published_from_either_copy(
    runs: Runs, tmp_path: Path, regular: bool
) -> None:
    falling = [f"train.eval_interval={10 if regular else 11}", "train.eval_iters=null"]
    first = runs(*falling)
    assert first.metrics["best_step"] == 20
    first.publish_model(tmp_path / "model")
    (last,) = runs.only().glob("step-*")
    assert (last / "model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
    flip_a_bit(last / "model.safetensors")
    if regular:
        runs(*falling).publish_model(tmp_path / "again")
        assert (tmp_path / "again/model.safetensors").read_bytes() == (
            tmp_path / "model/model.safetensors"
        ).read_bytes()
    else:
        with pytest.raises(UserError, match="step-000000020/model.safetensors: not what was saved"):
            runs(*falling)


def test_init_from_resume_continues_and_never_starts(runs: Runs) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 3, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs()
    resumed = runs("train.init_from=resume")
    assert outcome(resumed) == outcome(runs.elsewhere("uninterrupted")())


def test_a_second_signal_acts_at_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def impatient(trainer: Trainer) -> None:
        step(trainer)
        if trainer.state.step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", impatient)
        with pytest.raises(KeyboardInterrupt):
            runs()
    signal.signal(signal.SIGINT, before)
    assert outcome(runs()) == outcome(runs.elsewhere("uninterrupted")())


def test_how_a_run_is_watched_and_saved_is_not_part_of_it(runs: Runs) -> None:
    first = runs()
    said: list[str] = []
    again = runs("runtime.checkpoint_interval=1", "log.log_interval=1", "sample.seed=5", say=said.append)
    assert again.run.folder == first.run.folder
    assert said == [f"{first.run.folder}: already finished, nothing to train"]
    other = runs.elsewhere("other")("runtime.checkpoint_interval=7", "log.log_interval=1")
    assert other.run.folder.name == first.run.folder.name
    assert outcome(other)["model"] == outcome(first)["model"]
    assert outcome(other)["metrics"] == outcome(first)["metrics"]


@pytest.mark.parametrize(
    "override",
    [
        "model.dropout=0.2",
        "model.n_layer=1",
        "train.seed=1",
        "train.learning_rate=0.02",
        "train.max_iters=19",
        "train.eval_iters=null",
        "train.dtype=bfloat16",
        "train.always_save_checkpoint=true",
    ],
)
def test_what_matters_makes_another_run(runs: Runs, override: str) -> None:
    assert runs().run.folder != runs(override).run.folder


def test_other_data_makes_another_run(runs: Runs, tmp_path: Path) -> None:
    first = runs()
    data = tmp_path / "tokens"
    shutil.copytree(runs.tokens, data)
    assert Runs(data, runs.folder)().run.folder == first.run.folder, "where the data lies does not matter"
    manifest = json.loads((data / "manifest.json").read_text())
    ids = np.fromfile(data / "train-00000.bin", dtype="<u2")
    ids[0] = (ids[0] + 1) % 20
    ids.tofile(data / "train-00000.bin")
    manifest["train"]["shards"][0]["sha256"] = sha256_file(data / "train-00000.bin")
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert Runs(data, runs.folder)().run.folder != first.run.folder


def test_seed_decides_everything_and_nothing_else_does(runs: Runs) -> None:
    torch.manual_seed(5)
    first = outcome(runs())
    torch.manual_seed(6)
    assert outcome(runs.elsewhere("again")()) == first
    assert outcome(runs("train.seed=7"))["model"] != first["model"]


def test_loss_falls(runs: Runs) -> None:
    fitted = runs("train.max_iters=60", "train.lr_decay_iters=60", "train.eval_iters=null")
    losses = [row["val_loss"] for row in log_of(fitted) if row["val_loss"] is not None]
    assert losses[-1] < losses[0] - 0.6
    metrics = fitted.metrics
    assert metrics["val_loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["val_loss"]))
    assert metrics["tokens"] == 60 * 2 * 4 * 8
    assert metrics["train_loss"] == pytest.approx(metrics["val_loss"], abs=0.3)
    assert metrics["params"] == 7056


def test_log_has_the_mean_loss_since_the_row_before(runs: Runs) -> None:
    every = log_of(runs("log.log_interval=1"))
    some = log_of(runs.elsewhere("some")("log.log_interval=5"))
    losses = {row["step"]: row["train_loss"] for row in every}
    rates = {row["step"]: row["lr"] for row in every}
    norms = {row["step"]: row["grad_norm"] for row in every}
    assert losses[0] is None
    before = 0
    assert [row["step"] for row in some if row["train_loss"] is None] == [0, 6, 12, 18]  # evaluations alone
    for row in some:
        step = int(row["step"] or 0)
        if row["train_loss"] is None:
            assert (row["lr"], row["tokens"]) == (rates[step], step * 64) and row["val_loss"] is not None
            continue
        mean = np.mean([losses[s] for s in range(before + 1, step + 1)])
        assert row["train_loss"] == pytest.approx(mean, abs=1e-5)
        assert (row["lr"], row["grad_norm"], row["tokens"]) == (rates[step], norms[step], step * 64)
        before = step


def test_gradient_accumulation_equals_a_larger_batch(runs: Runs) -> None:
    def weights(batch_size: int, micro_batches: int) -> dict[str, torch.Tensor]:
        fitted = runs(
            f"train.batch_size={batch_size}",
            f"train.gradient_accumulation_steps={micro_batches}",
            "model.dropout=0.0",
            "train.max_iters=5",
        )
        return weights_of(fitted)

    at_once, in_parts = weights(12, 1), weights(3, 4)
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_full_precision(runs: Runs, dtype: str) -> None:
    full, half = (
        log_of(runs("log.log_interval=1")),
        log_of(runs("log.log_interval=1", f"train.dtype={dtype}")),
    )
    for one, other in zip(full[1:6], half[1:6], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.01)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.1), (
            "in units of the loss, unscaled"
        )


def test_clipping_shortens_the_update_and_logs_the_length_before(runs: Runs) -> None:
    few = ["train.max_iters=1", "log.log_interval=1", "train.weight_decay=0"]
    free, clipped = runs(*few, "train.grad_clip=0"), runs(*few, "train.grad_clip=1e-8")
    assert log_of(free)[1]["grad_norm"] == log_of(clipped)[1]["grad_norm"]
    start = runs(*few, "train.eval_only=true")

    def moved(fitted: FittedRun) -> float:
        before, after = weights_of(start), weights_of(fitted)
        return max((after[name] - before[name]).abs().max().item() for name in before)

    rate = build_schedule(tiny.params(*few).train)(0)
    assert moved(free) == pytest.approx(
        rate, rel=1e-3
    )  # AdamW's first step has one length, whatever the gradient
    assert moved(clipped) < rate / 2  # unless the gradient is as small as its epsilon


NOISY = ["train.learning_rate=0.2", "train.decay_lr=false", "train.eval_interval=2", "train.eval_iters=null"]


@pytest.mark.parametrize("keep_last", [True, False])
def test_what_is_kept_is_the_best_or_the_last(runs: Runs, tmp_path: Path, keep_last: bool) -> None:
    fitted = runs(*NOISY, f"train.always_save_checkpoint={str(keep_last).lower()}")
    metrics = fitted.metrics
    losses = {row["step"]: row["val_loss"] for row in log_of(fitted) if row["val_loss"] is not None}
    best_step = min(losses, key=lambda step: losses[step])
    assert best_step != 20, "the best and the last model have to differ here"
    assert (metrics["best_step"], metrics["steps"]) == (best_step, 20)
    assert metrics["best_val_loss"] == pytest.approx(losses[best_step], abs=1e-5)
    assert metrics["last_val_loss"] == pytest.approx(losses[20], abs=1e-5)
    assert metrics["val_loss"] == metrics["last_val_loss" if keep_last else "best_val_loss"]
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["val_loss"]))

    fitted.publish_model(tmp_path / "results" / "model")
    last = fitted.run.newest()
    assert last is not None
    source = last if keep_last else fitted.run.best
    assert metrics["saved"] == ("last" if keep_last else "best")
    published = tmp_path / "results" / "model"
    names = sorted(path.name for path in published.iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]
    assert sha256_file(published / "model.safetensors") == sha256_file(source / "model.safetensors")
    assert (published / "tokenizer.json").read_bytes() == (runs.tokens / "tokenizer.json").read_bytes()
    assert load_model(published).num_params() == metrics["params"]


def test_eval_only_measures_the_initial_model(runs: Runs) -> None:
    fitted = runs("train.eval_only=true")
    assert [row["step"] for row in log_of(fitted)] == [0]
    assert (fitted.metrics["steps"], fitted.metrics["tokens"]) == (0, 0)
    torch.manual_seed(1337)
    initial = build_gpt(GPTConfig(**tiny.params().model.model_dump(), vocab_size=21)).state_dict()
    for name, value in load_file(fitted.run.best / "model.safetensors").items():
        assert torch.equal(value, initial[name]), name


def test_a_model_folder_as_the_start(runs: Runs, tmp_path: Path) -> None:
    first = runs()
    first.publish_model(tmp_path / "model")
    start = f"train.init_from={tmp_path / 'model'}"
    measured = runs(start, "train.eval_only=true")
    assert measured.metrics["val_loss"] == pytest.approx(first.metrics["val_loss"], abs=1e-6)
    uninterrupted = outcome(runs.elsewhere("uninterrupted")(start, "model.dropout=0.3"))
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            runs(start, "model.dropout=0.3")
    assert outcome(runs(start, "model.dropout=0.3")) == uninterrupted
    assert uninterrupted["metrics"]["val_loss"] < first.metrics["val_loss"]


STOPPING = "model.learned_stopping=true"
CONCAT = ["model.recurrent_noise_mode=concat", "model.recurrent_noise_std=0.1"]


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ([], ["model.sticky_dropout=0.2", "model.recurrent_backprop_depth=1"], None),
        ([], ["model.recurrent_depth=3", "model.recurrent_max_depth=5"], None),
        ([], ["model.recurrent_depth=3", "model.scale_loss_by_n_layer=true"], None),
        ([], ["model.recurrent_noise_mode=add", "model.recurrent_noise_std=0.1"], None),
        (["model.moe=true"], ["model.moe=true", "model.moe_aux_loss_weight=0.01"], None),
        ([STOPPING], [STOPPING, "model.learned_stopping_use_threshold=true"], None),
        (CONCAT, [CONCAT[0], "model.recurrent_noise_std=0.2"], None),
        (CONCAT, [], "recurrent_noise_mode = none, but train.init_from = {model} has concat; make them"),
        ([], CONCAT, "recurrent_noise_mode = concat, but train.init_from = {model} has none; make them"),
        ([], ["model.layer_dropout=0.1"], "layer_dropout = 0.1, but train.init_from = {model} has 0.0; make"),
        ([], [STOPPING], "learned_stopping = true, but train.init_from = {model} has false"),
        (
            [],
            ["model.recurrent_extra_layernorm=true"],
            "recurrent_extra_layernorm = true, but train.init_from",
        ),
    ],
)
def test_a_start_may_be_trained_otherwise_but_is_the_same_model(
    runs: Runs, tmp_path: Path, before: list[str], after: list[str], refused: str | None
) -> None:
    recurrent = ["model.recurrent_shared_weights=true", "train.max_iters=1", "model.recurrent_depth=2"]
    first = runs(*recurrent, *before)
    model = tmp_path / "model"
    first.publish_model(model)
    start = [*recurrent, *after, f"train.init_from={model}", "train.eval_only=true"]
    if refused is None:
        loaded = weights_of(runs(*start))
        assert all(
            torch.equal(value, loaded[name]) for name, value in load_file(model / "model.safetensors").items()
        )
        return
    with pytest.raises(UserError) as error:
        runs(*start)
    assert str(error.value).startswith("model." + refused.format(model=model))


GPT2 = [
    "model.n_layer=24",
    "model.n_head=16",
    "model.n_embd=1024",
    "model.activation=gelu_new",
    "train.init_from=gpt2-medium",
]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.share_parameters_across_layers=true", "share_parameters_across_layers = true"),
        ("model.recurrent_shared_weights=true", "recurrent_shared_weights = true"),
        ("model.moe=true", "moe = true"),
        ("model.position=rotary", "position = rotary"),
        ("model.tie_word_embeddings=false", "tie_word_embeddings = false"),
        ("model.bias=false", "bias = false"),
        ("model.n_layer=12", "n_layer = 12"),
        ("model.block_size=2048", "block_size = 2048"),
    ],
)
def test_gpt2s_weights_fit_no_other_model(runs: Runs, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        runs(*GPT2, override)
    assert str(error.value).startswith(f"model.{message}, but train.init_from = gpt2-medium has ")
    assert "\n" not in str(error.value)


def test_other_initial_weights_are_another_run(runs: Runs, tmp_path: Path) -> None:
    start = f"train.init_from={tmp_path / 'model'}"
    folders = set()
    for seed in (1, 2):
        runs(f"train.seed={seed}").publish_model(tmp_path / "model")
        folders.add(runs(start).run.folder)
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.init_from=resume"], "train.init_from = resume: no checkpoint in "),
        (
            ["train.init_from=gpt2"],
            "model.n_layer = 2, but train.init_from = gpt2 has 12 (also different: n_head, ",
        ),
        (
            ["train.init_from=nowhere"],
            "train.init_from: model nowhere: no such folder; train a model first, or ",
        ),
        (
            ["train.init_from={model}", "model.n_layer=3"],
            "model.n_layer = 3, but train.init_from = {model} has 2; make",
        ),
        (["model.block_size=553"], "model.block_size = 553 needs 554 tokens, but the val split has 553; "),
        (
            ["model.block_size=9999"],
            "model.block_size = 9999 needs 10000 tokens, but the train split has 2210; ",
        ),
        (
            ["train.learning_rate=1e30", "train.decay_lr=false", "train.grad_clip=0"],
            "step 2: the training loss is nan; {incident} has the details; lower train.learning_rate (now",
        ),
        (
            ["train.learning_rate=1e30", "train.decay_lr=false", "train.max_iters=1"],
            "step 1: the validation loss is nan; {incident} has the details; lower train.learning_rate",
        ),
    ],
)
def test_what_cannot_work_gets_one_line(
    runs: Runs, tmp_path: Path, overrides: list[str], expected: str
) -> None:
    model = tmp_path / "model"
    if any("{model}" in override for override in overrides):
        runs("train.max_iters=1").publish_model(model)
    with pytest.raises(UserError) as error:
        runs(*(override.format(model=model) for override in overrides))
    incident = "{incident}" in expected and runs.only() / "incident.json"
    assert str(error.value).startswith(expected.format(model=model, incident=incident))
    assert error.value.status == (3 if incident else 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_half_a_model_folder_is_no_start(runs: Runs, tmp_path: Path, missing: str) -> None:
    runs("train.max_iters=1").publish_model(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(UserError, match=f"{missing}: No such file"):
        runs(f"train.init_from={tmp_path / 'model'}")


def test_a_start_with_another_tokenizer_is_refused(runs: Runs, tmp_path: Path) -> None:
    runs("train.max_iters=1").publish_model(tmp_path / "model")
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"v"', '"w"'))
    write_manifest(tokenizer.parent)
    with pytest.raises(UserError, match="its tokenizer differs from that of"):
        runs(f"train.init_from={tmp_path / 'model'}")


def test_a_diverged_run_saves_no_broken_checkpoint(runs: Runs) -> None:
    with pytest.raises(UserError, match="learning_rate"):
        runs("train.learning_rate=1e30", "train.decay_lr=false", "runtime.checkpoint_interval=2")
    for path in runs.only().glob("*/model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path


def test_two_at_once_train_once(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second one waits for the first, and takes its result."""
    said: list[str] = []
    waiting = threading.Event()
    results: list[FittedRun] = []

    def second() -> None:
        def say(text: str) -> None:
            said.append(text)
            waiting.set()

        results.append(runs(say=say))

    thread = threading.Thread(target=second)
    step = Trainer._step

    def start_second(trainer: Trainer) -> None:
        step(trainer)
        if trainer.state.step == 5:
            thread.start()
            assert waiting.wait(10)

    monkeypatch.setattr(Trainer, "_step", start_second)
    first = runs()
    thread.join(10)
    assert [line.split(":")[-1].split(";")[0].strip() for line in said][1:] == [
        "already finished, nothing to train"
    ]
    assert "waiting for it" in said[0]
    assert results[0].run.folder == first.run.folder
    assert results[0].metrics == first.metrics


def test_two_may_publish_at_once(runs: Runs, tmp_path: Path) -> None:
    fitted = runs("train.max_iters=1")
    folder = tmp_path / "results" / "model"
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            for _ in range(20):
                runs("train.max_iters=1").publish_model(folder)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    kept = fitted.run.kept(fitted.metrics)
    assert sha256_file(folder / "model.safetensors") == sha256_file(kept / "model.safetensors")


def test_compiling_changes_no_loss(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced forward and backward, but not turned into machine code, which takes a minute and a compiler."""
    monkeypatch.setattr("pipeline.train.loop.compiled", lambda model: compiled(model, "aot_eager"))
    few = ["train.max_iters=3", "log.log_interval=1", "model.dropout=0.0"]
    eager = log_of(runs(*few))
    fast = log_of(runs.elsewhere("compiled")(*few, "runtime.compile=true"))
    for one, other in zip(eager, fast, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)


def test_recomputing_activations_changes_nothing(runs: Runs) -> None:
    kept = runs()
    recomputed = runs.elsewhere("recomputed")("runtime.activation_checkpointing=true")
    assert outcome(recomputed) == outcome(kept)


def test_flops_follow_palm() -> None:
    model = tiny.model(n_layer=2, n_embd=16, block_size=8)
    matrices = 2 * 12 * 16 * 16 + 11 * 16
    vectors = 2 * (4 * 16 + (3 + 1 + 4 + 1) * 16) + 2 * 16
    assert model.flops_per_token() == 6 * (matrices + vectors) + 12 * 2 * 16 * 8
