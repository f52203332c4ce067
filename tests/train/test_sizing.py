"""Memory and disk are predicted as they turn out; what cannot fit is refused before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import GPTConfig
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.distributed.world import World
from pipeline.model.build import build_gpt
from pipeline.model.size import model_size
from pipeline.optim.build import build_optimizer
from pipeline.optim.state import named_state
from pipeline.runtime.device import autocast
from pipeline.storage.files import write_text
from pipeline.storage.machine import Room
from pipeline.train.checkpoint import OPTIMIZER_FILE
from pipeline.train.sizing import check_memory, expected_config, run_disk, training_memory
from pipeline.weights.model_folder import WEIGHTS_FILE
from tests import tiny
from tests.conftest import Ended
from tests.family import MODERN, MOE, RECURRENT, VARIANTS
from tests.train.runs import Runs

CPU = torch.device("cpu")


def kept_for_backward(config: GPTConfig, batch_size: int, dtype: str) -> int:
    """Bytes that a forward pass keeps for the backward pass, the model's own tensors left out."""
    model = build_gpt(config).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no later tensor gets the same address
        return tensor

    ids = torch.zeros(batch_size, config.block_size, dtype=torch.long)
    depth = config.max_depth if config.recurrent_shared_weights else None
    with autocast(CPU, dtype), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, targets=ids, depth=depth)
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


@pytest.mark.parametrize(
    ("switches", "dtype", "factor"),
    [
        ({}, "float32", 1.1),
        ({"n_layer": 8, "block_size": 64}, "float32", 1.1),
        ({"bias": False}, "bfloat16", 1.2),
        ({"block_size": 512, "n_head": 8}, "bfloat16", 1.1),
        ({"block_size": 512, "n_head": 8, "dropout": 0.1}, "bfloat16", 1.3),
        ({"dropout": 0.1}, "float32", 2),
        (MODERN, "float32", 2),
        (MODERN, "bfloat16", 2.5),
        ({**RECURRENT, "recurrent_max_depth": 5}, "float32", 1.1),
        (MOE, "float32", 2),
    ],
    ids=[
        "gpt2",
        "deep",
        "16-bit",
        "scores",
        "scores-dropout",
        "dropout",
        "modern",
        "modern-16-bit",
        "recurrent",
        "experts",
    ],
)
def test_activations_are_about_what_pytorch_keeps(
    switches: dict[str, Any], dtype: str, factor: float
) -> None:
    """A small vocabulary, so that the logits, whose log-softmax is kept, weigh little."""
    config = tiny.config(**{"n_layer": 4, "n_embd": 128, "block_size": 128, **switches})
    params = tiny.params("train.batch_size=8", f"train.dtype={dtype}")
    needs = training_memory(config, model_size(config), params, CPU)
    kept = kept_for_backward(config, 8, dtype)
    assert needs.activations / 1.1 < kept < factor * needs.activations


WIDE = {"n_layer": 6, "n_head": 8, "n_embd": 384, "block_size": 256, "vocab_size": 1024}


@pytest.mark.parametrize(
    ("switches", "batch_size", "dtype", "factor", "optimizer"),
    [
        ({**WIDE, "n_layer": 16}, 6, "float32", 1.4, "adamw runtime.activation_checkpointing=true"),
        (WIDE, 6, "float32", 1.4, "adamw"),
        (WIDE, 12, "bfloat16", 1.4, "adamw"),
        ({**WIDE, "n_layer": 2, "vocab_size": 30_000}, 3, "float32", 1.4, "adamw"),
        (WIDE | MODERN, 6, "float32", 2, "adamw"),
        (WIDE, 6, "float32", 1.4, "muon"),
        (WIDE, 1, "float32", 1.4, "muon"),
        (WIDE, 2, "bfloat16", 1.4, "muon"),
    ],
    ids=["recomputed", "gpt2", "16-bit", "large-vocabulary", "modern", "muon", "muon-alone", "muon-16-bit"],
)
def test_a_training_step_needs_about_the_memory_predicted(
    switches: dict[str, Any], batch_size: int, dtype: str, factor: float, optimizer: str
) -> None:
    config = tiny.config(**switches)
    overrides = [f"train.batch_size={batch_size}", f"train.dtype={dtype}"]
    overrides += f"train.optimizer={optimizer}".split()
    predicted = training_memory(config, model_size(config), tiny.params(*overrides), CPU).total
    arguments = [json.dumps(switches), *overrides]
    command = [sys.executable, "-m", "tests.train.peak", *arguments]
    measured = int(subprocess.run(command, capture_output=True, check=True, cwd=tiny.ROOT).stdout)
    assert predicted / 1.2 < measured < factor * predicted, measured / predicted


@pytest.mark.parametrize("rules", ["adamw", "muon"])
@pytest.mark.parametrize("name", VARIANTS)
def test_weights_gradients_and_moments_are_those_of_a_step(name: str, rules: str) -> None:
    config, params = tiny.config(**VARIANTS[name]), tiny.params(f"train.optimizer={rules}")
    needs = training_memory(config, model_size(config), params, CPU)
    model = build_gpt(config).train()
    optimizer = build_optimizer(model, params.train)
    ids = torch.zeros(8, 8, dtype=torch.long)
    for _ in range(8):  # dropout may leave a block out
        model(ids, targets=ids).total.backward()
    optimizer.step()
    parameters = list(model.parameters())
    assert needs.weights == sum(tensor.nbytes for tensor in (*parameters, *model.buffers()))
    assert needs.gradients == sum(
        parameter.grad.nbytes for parameter in parameters if parameter.grad is not None
    )
    moments = (tensor for key, tensor in named_state(optimizer).items() if not key.endswith("/step"))
    assert needs.optimizer == sum(tensor.nbytes for tensor in moments)


def test_gpt2_as_in_nanogpts_notebook() -> None:
    """Source: nanoGPT's transformer_sizing.ipynb. It leaves out biases, and counts only matrix products."""
    gpt2, params = PUBLISHED["gpt2"].config, tiny.params()
    unbiased = model_size(gpt2.model_copy(update={"bias": False}))
    assert unbiased.parameters == 124_337_664
    assert run_disk(params, unbiased).checkpoint == 12 * 124_337_664
    assert 1024 * unbiased.flops_per_token == pytest.approx(874_944_921_600, rel=2e-4)
    checkpoint = run_disk(params, model_size(gpt2)).checkpoint
    assert checkpoint == 1_493_277_696
    assert checkpoint < 1_542_470_366 < 1.04 * checkpoint  # a file that nanoGPT wrote, a pickle


def test_the_files_of_a_run_have_the_predicted_sizes(runs: Runs) -> None:
    params = tiny.params()
    fitted = runs()
    config = fitted.config
    needs, size = run_disk(params, model_size(config)), model_size(config)
    headers = 200 * size.tensors
    (last,) = fitted.run.folder.glob("step-*")
    checkpoint = sum((last / name).stat().st_size for name in (WEIGHTS_FILE, OPTIMIZER_FILE))
    assert needs.checkpoint < checkpoint < needs.checkpoint + 3 * headers
    best = (fitted.run.best / WEIGHTS_FILE).stat().st_size
    assert needs.best < best < needs.best + headers
    assert needs.checkpoints == 3 * needs.checkpoint


COOLDOWN = ["train.warmup_iters=0", "train.cooldown_share=0.5"]


def test_the_checkpoint_where_the_cooldown_starts_stays(runs: Runs) -> None:
    """The cooldown starts at step 10, between two checkpoints."""
    fitted = runs("train.optimizer=muon", *COOLDOWN)
    params, size = tiny.params("train.optimizer=muon", *COOLDOWN), model_size(fitted.config)
    needs = run_disk(params, size)
    there = sorted(fitted.run.folder.glob("step-*"))
    assert [folder.name for folder in there] == ["step-000000010", "step-000000020"]
    for folder in there:
        written = sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, OPTIMIZER_FILE))
        assert needs.checkpoint < written < needs.checkpoint + 600 * size.tensors
    assert needs.checkpoint < run_disk(tiny.params(), size).checkpoint
    assert needs.checkpoints == (2 + 1 + 1) * needs.checkpoint


@pytest.mark.parametrize(
    ("overrides", "checkpoints"),
    [
        ("train.max_iters=4", 1),
        ("train.max_iters=8", 2),
        ("train.max_iters=20", 3),
        ("train.max_iters=0", 1),
        ("train.eval_only=true", 1),
        ("train.max_iters=4 train.warmup_iters=0 train.cooldown_share=0.9", 2),
        ("train.max_iters=8 train.warmup_iters=0 train.cooldown_share=0.5", 2),
        ("train.max_iters=20 train.warmup_iters=0 train.cooldown_share=0.5", 4),
        ("train.max_iters=20 runtime.keep_every=7", 5),
    ],
)
def test_a_short_run_writes_fewer_checkpoints(overrides: str, checkpoints: int) -> None:
    needs = run_disk(tiny.params(*overrides.split()), model_size(tiny.config()))
    assert needs.checkpoints == checkpoints * needs.checkpoint


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["tokenizer.name=gpt2"], 50304),
        (["tokenizer.name=bpe", "tokenizer.vocab_size=500"], 500),
        (["tokenizer.name=byte"], 257),
        (["data.dataset=none"], None),
    ],
)
def test_the_vocabulary_is_known_before_the_text(
    overrides: list[str], rows: int | None, tiny_project: Path
) -> None:
    config = expected_config(tiny.params(*overrides))
    assert (config and config.vocab_size) == rows


def test_the_vocabulary_of_characters_is_that_of_the_tokens(tiny_project: Path) -> None:
    config = expected_config(tiny.params())
    assert config is not None and config.vocab_size == len(set(tiny.text()))


@pytest.mark.parametrize("name", ["check", "train"])
@pytest.mark.parametrize("shape", [["n_layer=1000", "n_embd=1000000"], ["n_layer=60000", "n_embd=8192"]])
def test_what_cannot_fit_into_memory_is_refused_before_work_starts(
    name: str, shape: list[str], tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    write_text(Path("tiny.txt"), tiny.text())
    write_spec(spec_for_text("tiny.txt"), Path("data/tiny/dataset.yaml"))
    ended = stage(name, *(word for value in shape for word in ("-S", f"model.{value}")))
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert "parameters (model.n_layer = " in ended.err and " of memory, without activations" in ended.err
    assert sorted(path.name for path in tiny_project.iterdir()) == ["data", "params.yaml", "tiny.txt"]


def test_optimizer_and_gradients_count(
    tiny_project: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory that just holds the weights, or a step's state without activations, or everything."""
    config = expected_config(tiny.params())
    assert config is not None
    needs = training_memory(config, model_size(config), tiny.params(), CPU)

    def train_with(total: int) -> Ended:
        for module in ("train.sizing", "runtime.memory"):
            monkeypatch.setattr(f"pipeline.{module}.memory", lambda: Room(total, total))
        return stage("train")

    refused = train_with(needs.certain - 1)
    assert refused.status == 2 and "without activations, but cpu has" in refused.err
    assert not Path("runs").exists()
    warned = train_with(needs.certain)
    assert warned.status == 0 and "note: training needs about" in warned.err
    assert "note:" not in train_with(needs.total).err


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(n_layer=2, dropout=0.1, vocab_size=len(set(tiny.text())))
    needed = run_disk(tiny.params(), model_size(config)).run
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(needed, needed - 1))
    with pytest.raises(UserError, match=r"the checkpoints of this run need .* of disk, but .* are free; "):
        runs()
    assert not runs.folder.exists()
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(needed, needed))
    runs()
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(needed, 0))
    runs()  # finished: nothing is written any more


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_processes_of_one_machine_count_together(
    mode: str, tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four on two machines: each builds a copy; with FSDP it then keeps a quarter of one."""
    params = tiny.params(f"runtime.parallel={mode}")
    config = expected_config(params)
    assert config is not None
    needs = training_memory(config, model_size(config), params, CPU)
    most = 2 * (needs.certain if mode == "ddp" else max(needs.weights, needs.of_each(4).certain))
    monkeypatch.setattr("pipeline.train.sizing.world", lambda: World(0, 4, 0, 2))

    def check(total: int) -> None:
        for module in ("train.sizing", "runtime.memory"):
            monkeypatch.setattr(f"pipeline.{module}.memory", lambda: Room(total, total))
        check_memory(params, config, CPU, lambda _: None)

    check(most)
    with pytest.raises(UserError, match="on 2 processes need"):
        check(most - 1)
