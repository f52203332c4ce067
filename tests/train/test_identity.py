"""A run is what determines its steps, no more and no less."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.model import GPTConfig
from pipeline.train import identity as identities
from pipeline.train.identity import Identity, code_of_steps
from tests import tiny
from tests.stages.test_dvc_yaml import STAGES
from tests.test_architecture import imports

IDENTITY = Identity("a", {"n_layer": 1, "n_head": 2}, tiny.params().train.model_dump(), {"loop.py": "1"})


def test_key_depends_on_every_ingredient_and_not_on_their_order() -> None:
    key = IDENTITY.key
    assert key == replace(IDENTITY, model={"n_head": 2, "n_layer": 1}).key
    others = [
        replace(IDENTITY, data="b"),
        replace(IDENTITY, model={"n_layer": 2, "n_head": 1}),
        replace(IDENTITY, train=IDENTITY.train | {"seed": 5}),
        replace(IDENTITY, code={"loop.py": "2"}),
        replace(IDENTITY, after="f00"),
    ]
    assert len({key, *(other.key for other in others)}) == 6


@pytest.mark.parametrize(
    ("change", "same_until"),
    [
        ({"max_iters": 99}, 1000),
        ({"eval_interval": 3}, 1000),
        ({"eval_iters": None}, 1000),
        ({"always_save_checkpoint": True}, 1000),
        ({"lr_decay_iters": 40}, 3),  # two steps of warmup, and the cosine begins at its top
        ({"decay_lr": False, "learning_rate": 0.01}, 0),
        ({"seed": 5}, -1),
        ({"batch_size": 5}, -1),
        ({"grad_clip": 0.5}, -1),
        ({"skip_nonfinite_steps": 1}, -1),
    ],
)
def test_steps_are_the_same_as_long_as_all_that_they_depend_on_is(
    change: dict[str, object], same_until: int
) -> None:
    other = replace(IDENTITY, train=IDENTITY.train | change)
    for steps in range(30):
        assert IDENTITY.takes_the_steps_of(other, steps) == (steps <= same_until), steps
    assert not replace(other, data="b").takes_the_steps_of(other, 0)
    assert not replace(other, code={}).takes_the_steps_of(other, 0)


def test_key_depends_on_the_training_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(identities.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = code_of_steps()
    monkeypatch.setattr(identities, "PACKAGE", copy)
    assert code_of_steps() == code, "where the project lies does not matter"
    for name, matters in {
        "train/loop.py": True,
        "model/gpt.py": True,
        "optim/schedule.py": True,
        "track/console.py": False,
        "train/metrics.py": False,
        "config/presets.py": False,
        "report/tables.py": False,
    }.items():
        before, path = code_of_steps(), copy / name
        path.write_text(path.read_text().replace('"""', '"""Put differently: ', 1) + "# a comment\n")
        assert code_of_steps() == before, f"{name}: words determine no step"
        path.write_text(path.read_text() + "def added() -> None:\n    pass\n")
        before = code_of_steps()
        path.write_text(
            path.read_text().replace("added() -> None:\n", 'added() -> None:\n    """Says more."""\n')
        )
        assert code_of_steps() == before, f"{name}: nor do words where there were none"
        path.write_text(path.read_text() + "CHANGED = 1\n")
        assert (code_of_steps() != before) == matters, name


def test_what_the_model_derives_from_its_parameters_is_in_the_key() -> None:
    """So a change of a formula in config/model.py is another run, and one of a description is not."""
    config = GPTConfig(**tiny.params("model.moe=true").model.model_dump(), vocab_size=9)
    values = config.with_derived()
    assert values["max_depth"] == config.max_depth
    assert set(config.model_dump()) < set(values)


# What the loop and the start of a run reach, and what determines no step: an answer for each module.
NO_STEP = {
    "config",  # its values are in the key, and what the model derives from them
    "corpus",  # so is the text, as a hash of the tokens
    "distributed/launch.py",  # starts the processes
    "storage",
    "track",
    "runtime/memory.py",  # only refuses a start
    "runtime/stop.py",
    "tokens/tokenizer_json.py",  # only refuses a start, and counts bytes for the reports
    "tokens/tokenizers.py",
    "evaluate/scoring.py",  # only figures for the log
    "evaluate/tasks.py",
    "evaluate/zeroshot.py",
    "train/background.py",
    "train/earlier.py",  # finds checkpoints that the same code made
    "train/health.py",  # only figures; tests/train/test_health.py trains with and without it
    "train/fit.py",  # only calls, in this order: check, build, load, train
    "train/meter.py",
    "train/metrics.py",
    "train/identity.py",
    "train/runs.py",
    "train/sizing.py",  # only refuses a start
    "weights/hub_models.py",  # finds weights, which are known by their hash
    "weights/names.py",
}


def test_the_key_covers_all_code_that_training_reaches_or_says_why_not() -> None:
    reached = {"pipeline.train.fit", *imports().find_upstream_modules("pipeline.train.fit")}
    for module in reached:
        path = module.removeprefix("pipeline.").replace(".", "/")
        names = {path.partition("/")[0], f"{path}.py"}
        covered, excused = names & set(identities.SOURCES), names & NO_STEP
        assert bool(covered) != bool(excused), module


def test_dvc_runs_the_stage_again_whenever_the_key_changes() -> None:
    (stage,) = (stage for name, stage in STAGES.items() if name == "dvc.yaml:train")
    assert {f"pipeline/{source.partition('/')[0]}" for source in identities.SOURCES} <= set(stage["deps"])
