"""Both programs get one configuration; the figures are read from their words, and judged by the bars."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.fork import (
    LOSS_BARS,
    ONLY_HERE,
    Check,
    Pair,
    Reading,
    Stopping,
    Training,
    checks,
    expert_load,
    main,
    markdown,
    summarize,
    time_left,
)
from bench.harness import CONFIG, FORK, PREPARE, RESEEDED, find_clone
from bench.variants import VARIANTS
from pipeline.config.errors import UserError

ROOT = Path(__file__).parents[2]

LOG = """\
step,tokens,train_loss,tokens_per_second,moe0_load_0,moe0_load_1,moe0_dummy,moe1_load_0,moe1_load_1,moe1_dummy
0,0,,,,,,,,
1,768,4.2,7680,0.9,0.1,1.0,0.9,0.1,1.0
2,1536,4.1,7680,0.4,0.4,1.2,0.6,0.2,1.2
"""

STOPPING = Stopping(4, 0.5, Reading(2.6, 2.21), Reading(2.5, 2.20), Reading(4.0, 2.20))


def pair(fork: float, here: float, fork_loss: float = 2.1, loss: float = 2.0) -> Pair:
    return Pair(Training(fork_loss, fork), Training(loss, here))


PAIRS = {
    "dense": [pair(0.030, 0.020), pair(0.050, 0.040), pair(0.040, 0.030)],
    "moe": [pair(0.100, 0.026), pair(0.200, 0.120), pair(0.090, 0.045)],
}


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables, by the first one."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]
    return {line[0]: line[1:] for line in lines}


def test_every_variant_is_known() -> None:
    assert set(LOSS_BARS) | set(ONLY_HERE) <= set(VARIANTS)


def test_the_forks_seed_moves_without_an_edit(tmp_path: Path) -> None:
    """Its train.py sees the arguments it would have seen, finds model.py, and draws from another seed."""
    (tmp_path / "model.py").write_text("name = 'model'\n")
    (tmp_path / "train.py").write_text(
        "import sys, torch, model\n"
        "torch.manual_seed(1337)\n"
        "print(__name__, model.name, sys.argv[1:], torch.initial_seed())\n"
    )
    command = [sys.executable, "-c", RESEEDED, "2", "config.py", "--moe=True"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output == "__main__ model ['config.py', '--moe=True'] 1339\n"


def test_load_is_the_last_row_of_the_worst_layer_without_the_dummy() -> None:
    assert expert_load(LOG.splitlines()) == pytest.approx(0.6 / 0.4)


def test_no_load_without_experts() -> None:
    assert expert_load(["step,tokens,train_loss", "1,768,4.2"]) is None


def test_ratios_are_those_of_neighbours_and_of_the_same_seed() -> None:
    dense, moe = summarize(PAIRS)
    assert dense.to_dense == 1.0
    assert moe.to_fork == pytest.approx(0.5)  # of 0.26, 0.6 and 0.5
    assert moe.to_dense == pytest.approx(1.5)  # of 1.3, 3.0 and 1.5
    assert (moe.fork_step_seconds, moe.step_seconds) == (0.100, 0.045)


def test_losses_are_means_and_loads_the_worst() -> None:
    trained = [Pair(None, Training(loss, 0.1, load)) for loss, load in ((2.0, 1.2), (2.1, 1.6), (2.3, 1.1))]
    (row,) = summarize({"moe": trained})
    assert row.val_loss == pytest.approx(6.4 / 3)
    assert row.load == 1.6
    assert row.fork_val_loss is row.to_fork is row.to_dense is None


def test_bars_pass_and_miss() -> None:
    pairs = {
        "dense": [pair(0.03, 0.02, loss=2.109)],
        "moe": [Pair(Training(2.1, 0.06), Training(2.074, 0.028, load=1.6))],
        "stopping": [Pair(None, Training(2.2, 0.02, stopping=STOPPING))],
    }
    bars = {check.title: check.met for check in checks(summarize(pairs), pairs, full_length=True)}
    assert bars == {
        "step of moe / the fork's": True,
        "step of moe / dense": True,
        "val loss of dense": True,
        "val loss of moe": True,
        "busiest expert / mean of moe": False,
        "mean depth / full of stopping": True,
        "val loss above full depth of stopping": True,
    }
    stopping = replace(STOPPING, at_threshold=Reading(2.9, 2.23))
    worse = {"stopping": [Pair(None, Training(2.2, 0.02, stopping=stopping))]}
    bars = {check.title: check.met for check in checks(summarize(worse), worse, full_length=True)}
    assert bars == {
        "mean depth / full of stopping": False,
        "val loss above full depth of stopping": False,
    }


def test_a_short_training_is_judged_by_its_speed_only() -> None:
    titles = [check.title for check in checks(summarize(PAIRS), PAIRS, full_length=False)]
    assert titles == ["step of moe / the fork's", "step of moe / dense"]


def test_a_variant_is_compared_with_the_loss_of_its_own_bar() -> None:
    pairs = {variant: [pair(0.03, 0.02, loss=2.12)] for variant in LOSS_BARS}
    bars = checks(summarize(pairs), pairs, full_length=True)
    missed = {check.title for check in bars if not check.met}
    assert missed >= {"val loss of dense", "val loss of moe", "val loss of moe-shared"}
    assert not missed & {"val loss of shared", "val loss of moe-hard", "val loss of layer-dropout"}


def test_the_tables_are_markdown() -> None:
    pairs = PAIRS | {"stopping": [Pair(None, Training(2.21, 0.018, stopping=STOPPING))]}
    rows = summarize({"dense": PAIRS["dense"], "moe": PAIRS["moe"]})
    text = markdown(rows, [Check("step of moe / dense", 1.5, 1.4), Check("a", 1.4, 1.4)], pairs)
    cells = rows_of(text)
    assert cells["moe"] == ["2.1000", "2.0000", "100.00 ms", "45.00 ms", "0.500", "1.500", ""]
    assert cells["stops above 0.5"] == ["2.60 of 4", "2.2100"]
    assert cells["never stops"] == ["4.00 of 4", "2.2000"]
    assert cells["step of moe / dense"] == ["1.5000", "≤ 1.4", "MISS"]
    assert cells["a"] == ["1.4000", "≤ 1.4", "pass"]
    for table in text.split("\n\n"):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_time_left_counts_what_is_known() -> None:
    assert time_left({}, ["dense", "moe"]) == ""
    assert time_left({"dense": 60.0, "moe": 180.0}, ["moe", "dense", "shared"]) == " (about 6 min left)"


def test_a_folder_that_is_no_clone_of_the_fork_is_named(tmp_path: Path) -> None:
    for name in ("train.py", "model.py", "sample.py", CONFIG):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"not a clone of github.com/Amr-Hegazy1/nanoGPT, it has no .*prepare\.py"
    ):
        find_clone(FORK, tmp_path)
    (tmp_path / PREPARE).parent.mkdir(parents=True)
    (tmp_path / PREPARE).touch()
    with pytest.raises(
        UserError,
        match=r"not a clone of github.com/Amr-Hegazy1/nanoGPT, its train\.py has no share_moe_experts",
    ):
        find_clone(FORK, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clone": None}, "--no-fork"),
        ({"clone": Path("nanoGPT"), "fork": False}, "--no-fork contradicts nanoGPT"),
        ({"clone": None, "fork": False, "variants": "dens"}, "did you mean dense"),
        ({"clone": None, "fork": False, "dtype": "bf16"}, "train.dtype = 'bf16'"),
    ],
)
def test_mistakes_are_said_before_anything_runs(
    arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        main(**arguments)  # type: ignore[arg-type]
