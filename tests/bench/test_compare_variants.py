"""`make bench WHAT=variants` trains what is not trained yet, and compares the variants' curves."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.compare_variants import experts_per_token, markdown
from pipeline.evaluate.depth import DepthCurve
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import StoppingPoint
from tests.conftest import Ended
from tests.train.runs import stop_at

Stage = Callable[..., Ended]

SHORT = ["-S", "train.max_iters=6", "-S", "depth.stopping_thresholds=[0.3, 0.7]"]
OUTPUTS = [f"results/bench-variants.{suffix}" for suffix in ("csv", "md", "png")]


def metrics_of_runs() -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in Path("runs").glob("*/finished/metrics.json")]


def test_variants_are_trained_once_and_compared(
    tiny_project: Path, stage: Stage, without_fsync: None
) -> None:
    ended = stage("compare_variants", "--variants", "dense,stopping", "--seeds", "1", *SHORT)
    assert ended.status == 0
    lines = ended.err.splitlines()
    assert [line for line in lines if " of 2: " in line] == [
        "1 of 2: dense, seed 1337",
        "2 of 2: stopping, seed 1337",
    ]
    trained = metrics_of_runs()
    assert len(trained) == 2

    with Path("results/bench-variants.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "depth", "val_loss", "perplexity", "val_bpb"]
    assert sorted((row["variant"], int(row["depth"])) for row in rows) == [
        *(("dense", depth) for depth in (1, 2)),
        *(("stopping", depth) for depth in range(1, 9)),
    ]
    dense = next(float(row["val_loss"]) for row in rows if (row["variant"], row["depth"]) == ("dense", "2"))
    assert dense in [pytest.approx(metrics["val_loss"], abs=1e-5) for metrics in trained]

    table = Path("results/bench-variants.md").read_text()
    assert ended.out.startswith(table)
    for metrics in trained:
        assert f" {metrics['params']:,} " in table and f" {metrics['best_val_loss']:.4f} " in table
    assert Path("results/bench-variants.png").read_bytes().startswith(b"\x89PNG")

    again = stage("compare_variants", "--variants", "stopping dense", "--seeds", "1", *SHORT)
    assert again.err.count("already finished, nothing to train") == 2
    assert Path("results/bench-variants.md").read_text() == table


def test_seeds_are_trained_each_and_their_mean_and_range_are_shown(
    tiny_project: Path, stage: Stage, without_fsync: None
) -> None:
    ended = stage("compare_variants", "--variants", "dense", "--seeds", "2", *SHORT)
    assert ended.status == 0
    losses = sorted(metrics["val_loss"] for metrics in metrics_of_runs())
    assert len(losses) == 2 and losses[0] < losses[1]
    (row,) = [line for line in ended.out.splitlines() if line.startswith("| dense")]
    assert f" {sum(losses) / 2:.4f} | {losses[0]:.4f} to {losses[1]:.4f} " in row


def test_interrupted_it_continues(tiny_project: Path, stage: Stage, without_fsync: None) -> None:
    command = ("compare_variants", "--variants", "dense,shared", "--seeds", "1", *SHORT)
    assert stage("compare_variants", "--variants", "dense", "--seeds", "1", *SHORT).status == 0
    for path in OUTPUTS:
        Path(path).unlink()
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 3, signal.SIGINT)
        ended = stage(*command)
    assert ended.status == 130
    assert (
        "2 of 2: shared" in ended.err
        and "stopped after step 3; run the same command to continue" in ended.err
    )
    assert not any(Path(path).exists() for path in OUTPUTS)
    ended = stage(*command)
    assert ended.status == 0
    assert ended.err.count("already finished") == 1 and "continuing after step 3" in ended.err
    assert all(Path(path).exists() for path in OUTPUTS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--variants", "dense,stoping"],
            "error: unknown variant stoping; did you mean stopping? (there are ",
        ),
        (["--variants", " , "], "error: --variants is empty; choose from dense, shared, "),
        (
            [
                *("--variants", "dense,stopping"),
                *("-S", "model.share_parameters_across_layers=true", "-S", "model.sticky_dropout=0.1"),
            ],
            "error: variant stopping: ",
        ),
        (["-S", "train.init_from=resume"], "error: train.init_from = resume: no weights fit all variants; "),
        (["-S", "data.dataset=other"], "error: data/other/char/manifest.json: no such file; "),
    ],
)
def test_bad_input_gets_one_line_before_anything_is_trained(
    tiny_project: Path, stage: Stage, arguments: list[str], expected: str
) -> None:
    ended = stage("compare_variants", *arguments)
    assert ended.status == 2
    assert ended.err.startswith(expected) and ended.err.count("\n") == 1
    assert not Path("runs").exists() and not Path("results").exists()


def test_the_tables_say_in_how_many_steps_a_model_reaches_what() -> None:
    def evaluation(loss: float) -> Evaluation:
        return Evaluation(nats=100 * loss, tokens=100, bytes=250)

    points = {1: evaluation(3.0), 2: evaluation(2.0), 3: evaluation(1.9)}
    stopping = [StoppingPoint(0.3, 0.5, evaluation(4.0)), StoppingPoint(0.5, 1.25, evaluation(2.25))]
    curves = [
        DepthCurve("recurrent", "steps of the shared block", points, trained_depth=2),
        DepthCurve("stopping", "steps of the shared block", points, 2, stopping, threshold=0.5),
    ]
    metrics = {"params": 12345, "experts_per_token": 1.125, "seconds": 61.2, "tokens_per_second": 9876.5}
    overview, by_threshold = markdown([(curve, metrics) for curve in curves]).split("\n\n")

    def cells(table: str) -> list[list[str]]:
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

    assert cells(overview)[0][:5] == ["variant", "parameters", "experts a token", "depth", "val loss"]
    assert [row[:5] for row in cells(overview)[2:]] == [
        ["recurrent", "12,345", "1.12", "2", "2.0000"],
        ["stopping", "12,345", "1.12", "1.25 of 2", "2.2500"],
    ]
    assert cells(overview)[2][5:6] + cells(overview)[2][7:] == ["", "61", "9,876"]
    assert cells(by_threshold)[2:] == [
        ["stops above 0.3", "0.50", "4.0000"],
        ["stops above 0.5", "1.25", "2.2500"],
        ["never stops", "2.00", "2.0000"],
    ]


def test_the_experts_that_computed_a_token_are_those_of_the_last_row() -> None:
    head = "step,moe0_load_0,moe0_load_1,moe0_dummy,moe1_load_0,moe1_load_1,moe1_dummy"
    assert experts_per_token([head, "1,1,1,0,1,1,0", "2,0.5,0.25,1.25,0.75,1,0.25"]) == 1.25
    assert experts_per_token(["step,train_loss", "1,2.5"]) is None
