"""What must also hold on a GPU: the same losses as on a CPU, in every precision, compiled, resumed, sampled.

Run them with `make test-gpu`; without a CUDA device they are skipped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.model.load import load_model
from pipeline.optim.build import build_optimizer
from pipeline.runtime.compiled import compiled
from pipeline.runtime.device import autocast, peak_flops, use_device
from pipeline.serve.sampling import Reader, TokenSampler, generate
from pipeline.train import health
from pipeline.train.fit import FittedRun
from pipeline.train.loop import Interrupted
from tests import tiny
from tests.conftest import Ended
from tests.family import VARIANTS
from tests.model.test_family import logits_of
from tests.train.runs import Runs, log_of, stop_at

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
ON_GPU = [f"runtime.device={DEVICE}", "model.dropout=0.0"]  # dropout draws other numbers on another device
ON_CPU = ["runtime.device=cpu", "model.dropout=0.0"]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
TARGETS = IDS.roll(-1, 1)


def losses(fitted: FittedRun) -> torch.Tensor:
    return torch.tensor([row["train_loss"] for row in log_of(fitted) if row["train_loss"] is not None])


@pytest.fixture
def on_cpu(runs: Runs) -> torch.Tensor:
    """The training losses of the tiny model on the CPU, in float32."""
    return losses(runs.elsewhere("cpu")(*ON_CPU))


def test_auto_finds_the_gpu() -> None:
    device = use_device(tiny.params("runtime.device=auto").runtime)
    assert device.type == DEVICE
    assert peak_flops(device, "bfloat16") > 1e12
    with pytest.raises(UserError, match="usable CUDA GPUs"):
        use_device(tiny.params("runtime.device=cuda:99").runtime)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_computes_what_it_does_on_a_cpu(name: str) -> None:
    """In float32, without TF32, and after training, where nothing is drawn."""
    torch.set_float32_matmul_precision("highest")
    model = tiny.model(**VARIANTS[name])
    with torch.no_grad():
        expected = model(IDS)
        found = model.to(DEVICE)(IDS.to(DEVICE)).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_health_of_every_variant_is_what_it_is_on_a_cpu(name: str) -> None:
    torch.set_float32_matmul_precision("highest")
    measured = []
    for device in ("cpu", DEVICE):
        model = tiny.model(**VARIANTS[name]).train().to(device)
        ids = IDS.to(device)
        model.eval()(ids, targets=TARGETS.to(device)).total.backward()  # where nothing is drawn
        optimizer = build_optimizer(model, tiny.params().train)
        figures = health.of_update(model, optimizer.step) | health.of_pass(model, ids)
        assert all(value.device.type == torch.device(device).type for value in figures.values())
        measured.append(health.numbers(figures))
    on_cpu, on_gpu = measured
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        ([], 1e-2),  # TF32
        (["train.dtype=bfloat16"], 0.1),
        (["train.dtype=float16"], 0.1),
        (["runtime.compile=true"], 1e-2),
        (["runtime.compile=true", "train.dtype=bfloat16"], 0.1),
    ],
    ids=["float32", "bfloat16", "float16", "compiled", "compiled-bfloat16"],
)
def test_training_follows_the_cpu(
    runs: Runs, on_cpu: torch.Tensor, overrides: list[str], tolerance: float
) -> None:
    found = losses(runs.elsewhere("gpu")(*ON_GPU, *overrides))
    torch.testing.assert_close(found, on_cpu, atol=tolerance, rtol=0)


def test_float16_scales_its_gradients(runs: Runs) -> None:
    fitted = runs(*ON_GPU, "train.dtype=float16", "log.log_interval=1")
    norms = torch.tensor([row["grad_norm"] for row in log_of(fitted)[1:] if row["grad_norm"] is not None])
    assert norms.isfinite().sum() > len(norms) / 2
    assert fitted.metrics["val_loss"] < losses(fitted)[0]


def test_an_interrupted_run_continues_where_it_was(runs: Runs) -> None:
    """On a GPU to rounding, because the order of its sums may change from run to run."""
    uninterrupted = runs.elsewhere("uninterrupted")(*ON_GPU)
    for step, what in ((7, signal.SIGINT), (13, signal.SIGTERM)):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(patched, step, what)
            with pytest.raises(Interrupted):
                runs(*ON_GPU)
    resumed = runs(*ON_GPU)
    assert [row["step"] for row in log_of(resumed)] == [row["step"] for row in log_of(uninterrupted)]
    torch.testing.assert_close(losses(resumed), losses(uninterrupted), atol=1e-3, rtol=0)
    assert resumed.metrics["device"].startswith(DEVICE)


@pytest.mark.parametrize("switches", [{}, {"moe": True}, {"recurrent_shared_weights": True}], ids=str)
def test_a_compiled_step_has_the_same_loss_and_gradients(switches: dict[str, Any]) -> None:
    torch.compiler.reset()
    results = []
    for fast in (False, True):
        model = tiny.model(**switches).to(DEVICE).train()
        forward: Callable[..., Any] = compiled(model) if fast else model
        depth = 2 if model.depth_distribution else None
        loss = forward(IDS.to(DEVICE), targets=TARGETS.to(DEVICE), depth=depth)
        loss.total.backward()
        results.append((loss.total.detach(), [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sampling_with_the_cache_writes_what_it_writes_without(dtype: str) -> None:
    """Greedily, so that no random number is drawn; one token at a time against the whole text each time."""
    model = tiny.model().to(DEVICE)
    device = torch.device(DEVICE)
    with autocast(device, dtype), torch.inference_mode():
        prompt = torch.tensor([[3]], device=device)
        cached = list(generate(model, prompt, 6, TokenSampler(greedy=True), 11))
        ids = prompt
        for _ in range(6):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert [int(token) for token in cached] == ids[0, 1:].tolist()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("lengths", [[3], [1, 8, 3]], ids=str)
@torch.inference_mode()
def test_captured_steps_have_the_logits_of_a_cpu(name: str, lengths: list[int]) -> None:
    """Past two windows, without TF32."""
    torch.set_float32_matmul_precision("highest")
    prompts = [ids[:length] for ids, length in zip(IDS.repeat(2, 1), lengths, strict=False)]
    new = torch.randint(11, (len(prompts), 20), generator=torch.Generator().manual_seed(0))
    expected = logits_of(tiny.model(**VARIANTS[name]), prompts, new)
    on_gpu = [prompt.to(DEVICE) for prompt in prompts]
    found = logits_of(tiny.model(**VARIANTS[name]).to(DEVICE), on_gpu, new.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_plain_models_are_captured() -> None:
    reader = Reader(tiny.model(position="rotary").to(DEVICE), [IDS[0].to(DEVICE)], 20, None)
    with torch.inference_mode():
        reader.start()
        reader.next(torch.tensor([3], device=DEVICE))
    assert reader.replay is not None


def test_the_stages_run_on_the_gpu(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    device = ("-S", f"runtime.device={DEVICE}")
    ended = stage("train", *device, "-S", "train.max_iters=4")
    assert ended.status == 0, ended.err
    for name in ("sample", "depth_curve"):
        assert stage(name, *device).status == 0
    assert stage("sample", *device).out == stage("sample", *device).out, "same seed, same text"
    on_cpu = load_model("results/model")
    on_gpu = load_model("results/model", DEVICE)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(on_gpu(ids.to(DEVICE)).cpu(), on_cpu(ids), atol=1e-3, rtol=1e-3)
