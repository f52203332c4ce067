"""A sweep plans ordinary runs that differ in size and length only, and trains those that are missing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.config.paths import RUN_LOCK
from pipeline.model.build import build_gpt
from pipeline.storage.checksums import damage
from pipeline.storage.lock import locked
from pipeline.train.loop import Interrupted
from pipeline.train.runs import Run
from pipeline.train.sizing import expected_config
from pipeline.train.sweep import Size, TrainedRun, default_sizes, default_tokens, plan, train_sweep
from tests import tiny
from tests.train.runs import stop_at

SIZES = [Size(1, 8), Size(1, 16), Size(2, 16)]
STEP = 64  # tokens
BUDGETS = [5 * STEP, 10 * STEP, 20 * STEP]


def params(*overrides: str) -> Params:
    """With a schedule whose runs share their first steps."""
    return tiny.params("train.cooldown_share=0.6", "train.warmup_iters=1", "train.dtype=float32", *overrides)


def trained(plans: object, jobs: int = 1) -> tuple[list[TrainedRun], list[str]]:
    said: list[str] = []
    return list(train_sweep(plans, jobs, said.append)), said  # type: ignore[arg-type]


def test_default_sizes_have_heads_of_the_active_width_and_lie_around_it() -> None:
    model = tiny.params("model.n_layer=10", "model.n_head=10", "model.n_embd=640")
    assert default_sizes(model) == [
        Size(4, 256),
        Size(6, 384),
        Size(8, 512),
        Size(10, 640),
        Size(12, 768),
    ]


def test_there_are_enough_default_sizes_of_any_model() -> None:
    for heads in (1, 2, 3):
        small = tiny.params("model.n_layer=1", f"model.n_head={heads}", f"model.n_embd={8 * heads}")
        assert len(default_sizes(small)) >= 3


@pytest.mark.usefixtures("tiny_project")
def test_heads_that_share_keys_and_values_do_so_in_each_size() -> None:
    base = params("model.n_layer=4", "model.n_head=12", "model.n_embd=96", "model.n_kv_head=4")
    sizes = default_sizes(base)
    assert len(sizes) >= 3
    for runs in plan(base, sizes, BUDGETS):
        model = runs[0].params.model
        assert (model.n_embd // model.n_head, model.n_head // (model.n_kv_head or 0)) == (8, 3)


def test_default_budgets_go_up_to_the_active_training() -> None:
    assert default_tokens(tiny.params("train.max_iters=80")) == [STEP * steps for steps in (10, 20, 40, 80)]


@pytest.mark.usefixtures("tiny_project")
def test_runs_differ_in_size_and_length_only() -> None:
    base = params()
    plans = plan(base, SIZES, [*BUDGETS, BUDGETS[0]])
    assert [runs[0].size for runs in plans] == [Size(2, 16), Size(1, 16), Size(1, 8)], "the largest first"
    own = {"n_layer", "n_embd", "n_head"}
    for runs in plans:
        assert [run.tokens for run in runs] == BUDGETS
        for run in runs:
            assert run.params.train.max_iters == run.params.train.lr_decay_iters == run.tokens // STEP
            assert run.params.model.model_dump(exclude=own) == base.model.model_dump(exclude=own)
            assert run.params.model.n_embd // run.params.model.n_head == 8
            assert run.params.train.learning_rate == base.train.learning_rate


@pytest.mark.usefixtures("tiny_project")
def test_flops_are_those_of_the_model_times_tokens() -> None:
    for run, *_ in plan(params(), SIZES, BUDGETS):
        config = expected_config(run.params)
        assert config is not None
        assert run.flops == build_gpt(config).flops_per_token() * run.tokens


def test_a_longer_run_goes_on_from_a_shorter_one_and_a_second_sweep_trains_nothing(
    tiny_project: Path,
) -> None:
    plans = plan(params(), SIZES, BUDGETS)
    first, said = trained(plans)
    assert len(first) == 9 and len({one.key for one in first}) == 9
    assert sum("continuing after step" in line for line in said) == 6, "two of three budgets"
    again, said = trained(plans)
    assert [one.key for one in again] == [one.key for one in first]
    assert sum("already finished" in line for line in said) == 9
    assert [one.metrics["val_loss"] for one in again] == [one.metrics["val_loss"] for one in first]


def test_several_jobs_train_the_same_models(tiny_project: Path) -> None:
    plans = [runs[:1] for runs in plan(params(), SIZES, BUDGETS)[:2]]
    several = {one.key: one.metrics["val_loss"] for one in trained(plans, jobs=2)[0]}
    alone, said = trained(plans)
    assert {one.key: one.metrics["val_loss"] for one in alone} == several
    assert sum("already finished" in line for line in said) == 2


def test_an_error_in_a_process_of_a_sweep_is_that_of_the_sweep(tiny_project: Path) -> None:
    plans = plan(params(), SIZES, BUDGETS)[:1]
    Path("data/tiny/char/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        trained(plans, jobs=2)


def test_a_signal_reaches_the_processes_of_a_sweep_which_save(tiny_project: Path) -> None:
    plans = [plan(params("train.max_iters=20000"), SIZES, [STEP, 2 * STEP, 20_000 * STEP])[0][2:]]
    log = Path("runs")

    def stop_once_it_trains() -> None:
        while not list(log.glob("*/step-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_it_trains, daemon=True).start()
    with pytest.raises(Interrupted) as stopped:
        trained(plans, jobs=2)
    assert stopped.value.status == 128 + signal.SIGTERM
    (checkpoint, *_) = reversed(Run(next(log.iterdir())).checkpoints())
    assert damage(checkpoint) is None and not list(log.glob("*/finished"))
    with locked(checkpoint.parent / RUN_LOCK, busy=pytest.fail):
        pass  # nobody trains it any more


def test_stopped_it_continues_with_what_is_missing(tiny_project: Path) -> None:
    plans = plan(params(), SIZES, BUDGETS)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 7, signal.SIGINT)
        with pytest.raises(Interrupted):
            trained(plans)
    finished = len(list(Path("runs").glob("*/finished")))
    assert finished < 9
    _, said = trained(plans)
    assert sum("already finished" in line for line in said) == finished


@pytest.mark.parametrize(
    ("changes", "sizes", "budgets", "message"),
    [
        ((), SIZES[:2], BUDGETS, "2 different sizes"),
        ((), [*SIZES[:2], SIZES[0]], BUDGETS, "2 different sizes"),
        ((), SIZES, BUDGETS[:2], "2 different token budgets"),
        (
            ("model.recurrent_shared_weights=true",),
            [Size(1, 8), Size(2, 8), Size(3, 16)],
            BUDGETS,
            "sizes of 2 different numbers of parameters",
        ),
        ((), SIZES, [STEP, STEP + 1, STEP + 2], "1 different token budgets of whole steps"),
        ((), [*SIZES, Size(1, 12)], BUDGETS, "size 1x12: 12 is no multiple of 8"),
        ((), SIZES, [1, 100, 1000], "1 tokens: less than a step of 64"),
        (("train.init_from=gpt2",), SIZES, BUDGETS, "train.init_from = gpt2"),
        (("train.eval_only=true",), SIZES, BUDGETS, "train.eval_only = true"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(
    changes: tuple[str, ...], sizes: list[Size], budgets: list[int], message: str, tiny_project: Path
) -> None:
    with pytest.raises(UserError, match=message):
        plan(params(*changes), sizes, budgets)
    assert not Path("runs").exists()
