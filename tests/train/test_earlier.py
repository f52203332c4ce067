"""A run goes on from the checkpoint of an earlier one, and ends as if it had begun at step 0."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.train import fit as fitting
from pipeline.train.fit import FittedRun
from pipeline.train.loop import Interrupted, Trainer
from tests.train.runs import Runs, flip_a_bit, outcome, stop_at

WHOLE = "train.eval_iters=null"


def told(runs: Runs, *overrides: str) -> tuple[FittedRun, list[str]]:
    said: list[str] = []
    return runs(*overrides, say=said.append), said


def steps_of(runs: Runs, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[FittedRun, list[int]]:
    """The run, and the steps that were really taken for it."""
    taken: list[int] = []
    step = Trainer._step

    def counted(trainer: Trainer) -> None:
        taken.append(trainer.state.step)
        step(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", counted)
        return runs(*overrides), taken


def published(fitted: FittedRun) -> dict[str, Any]:
    """What a run ends with; its key is in the metrics too."""
    return outcome(fitted)


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (["train.max_iters=20"], ["train.max_iters=30"], 20),
        (["train.max_iters=22", "log.log_interval=4"], ["train.max_iters=23", "log.log_interval=4"], 22),
        (["train.eval_interval=5"], ["train.eval_interval=10"], 20),
        (
            ["train.eval_interval=3", "train.max_iters=20"],
            ["train.eval_interval=6", "train.max_iters=28"],
            20,
        ),
        ([], ["train.always_save_checkpoint=true"], 20),
        (["train.lr_decay_iters=40"], ["train.lr_decay_iters=40", "train.max_iters=33"], 20),
        (
            ["train.decay_lr=false", "train.learning_rate=0.002"],
            [
                "train.learning_rate=0.002",
                "train.warmup_iters=0",
                "train.decay_lr=false",
                "train.max_iters=21",
            ],
            20,
        ),
    ],
)
def test_it_ends_as_a_fresh_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, before: list[str], after: list[str], first: int
) -> None:
    fresh = outcome(runs.elsewhere("fresh")(*after))
    earlier = runs(*before)
    extended, taken = steps_of(runs, monkeypatch, *after)
    assert taken == list(range(first, extended.metrics["steps"]))
    assert outcome(extended) == fresh
    assert json.loads(extended.run.about.read_text())["continues"] == {
        "run": earlier.run.folder.name,
        "step": first,
    }
    assert outcome(runs(*before)) == outcome(runs.elsewhere("again")(*before)), "the earlier run is whole"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_longer_run_continues_from_where_the_cooldown_began(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    def recipe(steps: int) -> list[str]:
        return [
            f"train.optimizer={optimizer}",
            f"train.max_iters={steps}",
            f"train.lr_decay_iters={steps}",
            f"train.cooldown_share={8 / steps}",
            "train.learning_rate=0.002",
            "train.muon_learning_rate=0.01",
            "train.embedding_learning_rate=0.01",
        ]

    runs(*recipe(20), "runtime.checkpoint_interval=2")
    extended, taken = steps_of(runs, monkeypatch, *recipe(30))
    assert taken == list(range(12, 30))
    assert outcome(extended) == outcome(runs.elsewhere("fresh")(*recipe(30)))


def test_evaluations_that_would_not_have_been_made_choose_no_model(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best model of step 20 is that of the irregular last evaluation of the earlier run."""
    short = [WHOLE, "train.max_iters=19", "train.eval_interval=7"]
    assert runs(*short).metrics["best_step"] == 19
    long = [WHOLE, "train.max_iters=20", "train.eval_interval=7"]
    extended, taken = steps_of(runs, monkeypatch, *long)
    assert taken == [19]
    assert outcome(extended) == outcome(runs.elsewhere("fresh")(*long))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ([], ["train.max_iters=15"], "its checkpoint is at step 20, after the last one now (15)"),
        ([], [WHOLE], "it was evaluated on 3 batches, not the whole split"),
        ([], ["train.eval_interval=4"], "it was not evaluated after step 4, as train.eval_interval asks"),
        (
            ["train.learning_rate=0.1", "train.decay_lr=false", "train.eval_interval=1", WHOLE],
            ["train.learning_rate=0.1", "train.decay_lr=false", "train.eval_interval=8", WHOLE],
            "its best model is not the one of step ",
        ),
    ],
)
def test_where_that_cannot_be_had_it_starts_afresh_and_says_why(
    runs: Runs, before: list[str], after: list[str], why: str
) -> None:
    earlier = runs(*before)
    fitted, said = told(runs, *after)
    assert said[0].startswith(f"{earlier.run.folder} took the same steps, but {why}")
    assert said[0].endswith("; training from the start") and "\n" not in said[0]
    assert outcome(fitted) == outcome(runs.elsewhere("fresh")(*after))


def test_other_steps_are_not_continued_nor_mentioned(runs: Runs) -> None:
    runs()
    for other in ("train.seed=3", "train.learning_rate=0.02", "model.dropout=0.2"):
        assert len(told(runs, other)[1]) == 1, other


def test_an_interrupted_run_is_continued_too(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 11, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs()
    extended, taken = steps_of(runs, monkeypatch, "train.max_iters=25")
    assert taken == list(range(11, 25))
    assert outcome(extended) == outcome(runs.elsewhere("fresh")("train.max_iters=25"))


def test_a_damaged_checkpoint_is_not_inherited(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    (last,) = runs().run.checkpoints()
    flip_a_bit(last / "optimizer.safetensors")
    _, taken = steps_of(runs, monkeypatch, "train.max_iters=25")
    assert taken[0] == 0


def test_without_links_the_checkpoint_is_copied(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    runs()
    monkeypatch.setattr(os, "link", no_links)
    assert outcome(runs("train.max_iters=25")) == outcome(runs.elsewhere("fresh")("train.max_iters=25"))


@pytest.fixture
def change_the_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that training code was changed; a number tells the versions apart."""
    original = fitting.code_of_steps

    def change(version: int) -> None:
        changed = {"pipeline/train/loop.py": f"{version}", "pipeline/optim/adamw.py": f"{version}"}
        monkeypatch.setattr(fitting, "code_of_steps", lambda: original() | changed)

    return change


def test_changed_code_starts_afresh_keeps_the_old_run_and_says_so(runs: Runs, change_the_code: Any) -> None:
    old = runs()
    before = outcome(old)
    change_the_code(1)
    new, said = told(runs)
    assert said[0] == (
        f"{old.run.folder} is this run by other code, and is kept; training from the start, because of "
        "pipeline/optim/adamw.py, pipeline/train/loop.py; to continue it instead: train.init_from = resume"
    )
    assert new.run.folder != old.run.folder
    assert outcome(old) == before
    assert told(runs)[1] == [f"{new.run.folder}: already finished, nothing to train"]


def test_resume_continues_the_run_of_the_old_code(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, change_the_code: Any
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 9, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs()
    old = runs.only()
    change_the_code(1)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 15, signal.SIGINT)
        with pytest.raises(Interrupted):
            runs("train.init_from=resume")
    fitted, taken = steps_of(runs, monkeypatch, "train.init_from=resume")
    assert taken == list(range(15, 20)), "it goes on with the mixed run"
    about = json.loads(fitted.run.about.read_text())
    assert about["continues"] == {"run": old.name, "step": 9} and about["identity"]["after"] == old.name
    plain, taken = steps_of(runs, monkeypatch)
    assert taken == list(range(20)), "a run of the new code alone is another one"
    assert plain.run.folder != fitted.run.folder
    assert outcome(plain)["model"] == outcome(fitted)["model"], "here the change was none"


def test_resume_without_anything_to_continue_is_refused(runs: Runs) -> None:
    runs("train.seed=3")
    with pytest.raises(UserError, match="train.init_from = resume: no checkpoint in "):
        runs("train.init_from=resume")


def test_a_note_of_an_older_version_is_no_obstacle(runs: Runs, tmp_path: Path) -> None:
    for name, content in (
        ("a", "{}"),
        ("b", "[]"),
        ("c", '{"identity": {"data": 1}}'),
        ("d", "{"),
        ("e", ""),
    ):
        (runs.folder / name).mkdir(parents=True)
        (runs.folder / name / "run.json").write_text(content)
    assert told(runs)[1][0].endswith("parameters on cpu")
