"""What a model reports of itself reaches the log and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate.tasks import Lambada
from pipeline.evaluate.zeroshot import evaluate_task
from pipeline.model.load import load_model
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import load_tokenizer
from tests.train.runs import Runs, log_of, outcome, rows, stopped_at_each, weights_of

RECURRENT = ["model.recurrent_shared_weights=true", "model.recurrent_depth=3", "log.log_interval=1"]


def test_the_log_has_the_depths_that_were_drawn_and_the_metrics_their_histogram(runs: Runs) -> None:
    fitted = runs(*RECURRENT)
    depths = [float(row["mean_depth"]) for row in rows(fitted)[1:]]  # each the mean of two micro-batches
    histogram = fitted.metrics["recurrent_depth_histogram"]
    assert len(depths) == 20
    assert sum(histogram.values()) == 40
    assert sum(int(depth) * count for depth, count in histogram.items()) == pytest.approx(2 * sum(depths))
    assert len(histogram) > 2
    assert set(histogram) <= {str(depth) for depth in range(1, 7)}


def test_a_model_of_fixed_depth_has_no_histogram(runs: Runs) -> None:
    assert "recurrent_depth_histogram" not in runs("train.max_iters=1").metrics


def test_the_log_has_each_layers_load(runs: Runs) -> None:
    fitted = runs("model.moe=true", "model.moe_num_experts=3", "train.max_iters=6", "log.log_interval=3")
    for row in rows(fitted)[1:]:
        for layer in range(2):
            loads = [float(row[f"moe{layer}_load_{expert}"]) for expert in range(3)]
            assert sum(loads) == pytest.approx(2, abs=1e-4)
            assert 0 < float(row[f"moe{layer}_entropy"]) < 1.1  # at most the logarithm of 3


def test_the_log_has_what_learned_stopping_comes_to(runs: Runs) -> None:
    fitted = runs(
        *RECURRENT,
        "model.learned_stopping=true",
        "model.learned_stopping_controller_weight=0.5",
        "model.learned_stopping_target_depth=1.5",
    )
    logged = rows(fitted)[1:]
    for row in logged:
        assert 1 <= float(row["mean_depth"]) < 3
        assert 1 <= float(row["target_depth"]) <= 1.5  # a pass of one step cannot aim higher
        assert 0 <= float(row["stopping_entropy"]) < 1.8  # at most the logarithm of 6
    assert any(float(row["stopping_entropy"]) > 0.1 for row in logged)
    assert any(float(row["controller_loss"]) > 0 for row in logged)


def test_the_share_of_clipped_steps_counts_those_since_the_row_before(runs: Runs) -> None:
    every = log_of(runs.elsewhere("every")("log.log_interval=1"))[1:]
    norms = sorted(row["grad_norm"] or 0 for row in every)
    clip = f"train.grad_clip={(norms[9] + norms[10]) / 2}"
    each_step = log_of(runs.elsewhere("each")("log.log_interval=1", clip))[1:]
    clipped = [float((row["grad_norm"] or 0) > (norms[9] + norms[10]) / 2) for row in each_step]
    assert [row["clipped_share"] for row in each_step] == clipped
    assert 0 < sum(clipped) < 20
    some = [clip, "log.log_interval=5"]
    shares = [row["clipped_share"] for row in log_of(runs(*some)) if row["train_loss"] is not None]
    assert shares == pytest.approx([sum(clipped[at : at + 5]) / 5 for at in (0, 5, 10, 15)])
    assert outcome(stopped_at_each(runs.elsewhere("stopped"), [3, 7, 8, 16], *some)) == outcome(runs(*some))
    assert "clipped_share" not in log_of(runs("train.grad_clip=0"))[-1]


ZEROSHOT = ["zeroshot.tasks=[lambada]", "log.zeroshot_interval=8"]


def test_zero_shot_figures_are_logged_now_and_then_and_change_nothing(
    runs: Runs, tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [
        "the sea sings over the old ship",
        "a small bird sails",
        "the red ship sinks and a bird sings",
    ]
    data = tmp_path / "lambada.jsonl"
    write_text(data, "".join(json.dumps({"text": text}) + "\n" for text in passages))
    monkeypatch.setattr(Lambada, "download", lambda folder: data)
    fitted = runs(*ZEROSHOT)
    logged = {int(row["step"]): row["lambada_perplexity"] for row in rows(fitted)}
    assert [step for step, figure in logged.items() if figure] == [0, 8, 16, 20]
    model = load_model(fitted.run.newest() or "")
    tokenizer = load_tokenizer(tiny_tokens)
    device = next(model.parameters()).device
    figures = evaluate_task(Lambada(data, tokenizer, 8, None), model, tokenizer, device, 16)
    assert float(logged[20]) == pytest.approx(figures["perplexity"], rel=1e-4)
    assert rows(fitted)[-1]["lambada_accuracy"] == f"{figures['accuracy']:.6g}"
    plain = weights_of(runs.elsewhere("plain")())
    assert all(value.equal(plain[name]) for name, value in weights_of(fitted).items())


def test_a_task_that_cannot_be_had_stops_the_run_before_it_starts(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(folder: Path) -> Path:
        raise UserError("no connection")

    monkeypatch.setattr(Lambada, "download", offline)
    with pytest.raises(UserError, match="lambada: no connection"):
        runs(*ZEROSHOT)
