"""A step is measured as training takes it, in parts that sum up to it, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.runtime.compiled import compiled
from pipeline.train.loop import Trainer
from pipeline.train.profile import PARTS, WARMUP, StepProfile, by_turns, largest_that_fits, micro_batches
from tests import tiny


@pytest.fixture
def profile(tiny_project: Path, with_known_peak: None) -> StepProfile:
    return StepProfile(tiny.params("log.trackers=[csv]"), Path("profile"))


def test_parts_sum_up_to_the_steps(profile: StepProfile) -> None:
    times = profile.measure(7)
    assert profile.trainer.state.step == WARMUP + 7
    assert list(times.parts) == list(PARTS) and all(seconds > 0 for seconds in times.parts.values())
    assert sum(times.parts.values()) == pytest.approx(sum(times.steps) / 7)
    outside = times.parts["data"] + times.parts["logging"] + times.parts["rest"]
    assert times.share_outside == pytest.approx(outside / sum(times.parts.values()))


def test_the_steps_are_those_of_training(profile: StepProfile) -> None:
    """Measured or not, the same steps give the same weights; the last one of the run is not the end."""
    again = StepProfile(profile.params, Path("again"))
    profile.measure(25)
    for _ in range(WARMUP + 25):
        again.trainer._step()
    for one, other in zip(profile.trainer.model.parameters(), again.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_left_behind(profile: StepProfile) -> None:
    before = Trainer._update, torch.Tensor.backward
    profile.measure(3)
    assert (Trainer._update, torch.Tensor.backward) == before
    assert not {"_update"} & vars(profile.trainer).keys()
    assert {path.name for path in Path().iterdir()} == {"params.yaml", "data", "profile"}
    assert {path.name for path in Path("profile").iterdir()} == {"log.csv", "health.csv"}


@pytest.mark.parametrize("preset", presets.names(tiny.ROOT / presets.FOLDER))
def test_every_preset_takes_its_steps(preset: str, tmp_path: Path, with_known_peak: None) -> None:
    """Made tiny, on the CPU, on random tokens: a dry run of those for a GPU, too."""
    params = presets.composed(preset, tiny.ROOT / presets.FOLDER).with_overrides(
        [
            *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
            *("train.batch_size=2", "train.gradient_accumulation_steps=2", "train.init_from=scratch"),
            *("runtime.device=cpu", "runtime.compile=false", "log.trackers=[csv]", "tokenizer.name=byte"),
        ]
    )
    profile = StepProfile(params, tmp_path, fixed_batch=True)
    before = [parameter.clone() for parameter in profile.trainer.model.parameters()]
    assert len(profile.measure(1).steps) == 1
    after = profile.trainer.model.parameters()
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_wandb_is_not_told(tiny_project: Path, with_known_peak: None) -> None:
    profile = StepProfile(tiny.params("log.trackers=[csv, wandb]"), Path("profile"))
    assert profile.params.log.trackers == ["csv"]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_without_tokens_a_batch_is_drawn(tiny_project: Path, with_known_peak: None, tokenizer: str) -> None:
    profile = StepProfile(tiny.params(f"tokenizer.name={tokenizer}"), Path("profile"))
    assert profile.text is None
    first, second = (profile.trainer.batches.micro_batch(step, 0)[0] for step in (0, 1))
    assert torch.equal(first.sort(0).values, second.sort(0).values), "the same windows"
    assert len(profile.measure(2).steps) == 2


def test_tokens_of_an_unknown_vocabulary_are_asked_for(tiny_project: Path) -> None:
    with pytest.raises(UserError, match=r"manifest.json: no such file"):
        StepProfile(tiny.params("data.dataset=other"), Path("profile"))


def test_the_rate_is_measured_at_the_models_shapes(profile: StepProfile) -> None:
    before = [parameter.clone() for parameter in profile.trainer.model.parameters()]
    assert profile.matrix_rate() > 0
    for one, other in zip(before, profile.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other) and other.grad is None


def test_the_rate_of_a_compiled_model_is_measured_on_plain_products(
    tiny_project: Path, with_known_peak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code would hide them; afterwards the model is compiled still."""
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            runs.append(1)
            return graph(*arguments)

        return run

    monkeypatch.setattr("pipeline.train.loop.compiled", partial(compiled, backend=backend))
    profile = StepProfile(tiny.params("runtime.compile=true"), Path("profile"))
    profile.measure(1)
    before = len(runs)
    assert before > 0 and profile.matrix_rate() > 0 and len(runs) == before
    profile.measure(1)
    assert len(runs) == before + before // (WARMUP + 1)


def test_profiles_take_turns(profile: StepProfile) -> None:
    assert by_turns({"one": profile}, steps=6, turns=3)["one"] > 0
    assert profile.trainer.state.step == WARMUP + 6


def test_a_trace_is_written(profile: StepProfile) -> None:
    table = profile.trace(Path("results/trace.json"), steps=1)
    assert "aten::" in table and '"traceEvents"' in Path("results/trace.json").read_text()


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "expected"),
    [
        (4, 2, [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (12, 40, [(15, 32), (30, 16), (60, 8), (120, 4), (240, 2), (480, 1)]),
        (3, 1, [(3, 1)]),
    ],
)
def test_micro_batches_keep_the_step(
    batch_size: int, accumulation: int, expected: list[tuple[int, int]]
) -> None:
    train = tiny.params(
        f"train.batch_size={batch_size}", f"train.gradient_accumulation_steps={accumulation}"
    ).train
    assert micro_batches(train) == expected


def test_the_largest_that_fits_is_found(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipeline.train.profile._fits", lambda params, folder, device: params.train.batch_size <= 4
    )
    assert largest_that_fits(tiny.params(), Path("fit")) == (4, 2)
    monkeypatch.setattr("pipeline.train.profile._fits", lambda params, folder, device: False)
    with pytest.raises(UserError, match="train.batch_size: 1 sequences are too many for cpu"):
        largest_that_fits(tiny.params(), Path("fit"))


def test_on_a_cpu_the_estimate_decides(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage.machine import Room

    assert largest_that_fits(tiny.params(), Path("fit")) == (8, 1)
    monkeypatch.setattr("pipeline.train.profile.memory_of", lambda device: Room(10**6, 0))
    with pytest.raises(UserError, match="too many for cpu"):
        largest_that_fits(tiny.params(), Path("fit"))
