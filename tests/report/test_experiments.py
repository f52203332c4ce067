"""Experiments are ordered by what compares, and fit a terminal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pipeline.report.experiments import WIDTH, Comparison, Experiment
from tests import tiny
from tests.figures import axes_of, texts_in

BASE = tiny.params().model_dump()


def experiment(name: str, loss: float | None = None, bpb: float = 1.0, **changes: Any) -> Experiment:
    """An experiment with `section__key=value` changed."""
    params = {section: dict(values) for section, values in BASE.items()}
    for place, value in changes.items():
        section, _, key = place.partition("__")
        params[section][key] = value
    if loss is None:
        return Experiment(name, params, {})
    figures = {"val_loss": loss, "val_bpb": bpb, "best_step": 20, "params": 1_260_000, "tokens": 1280}
    return Experiment(name, params, {**figures, "seconds": 75.2})


def names(comparison: Comparison) -> list[str]:
    return [one.name for one in comparison.rows]


def test_the_best_comes_first_with_its_changes_and_the_difference() -> None:
    comparison = Comparison(
        experiment("baseline", 3.0),
        [
            experiment("worse", 3.25, model__n_head=1, train__beta1=0.5, train__beta2=0.5),
            experiment("better", 2.5, bpb=9.0, model__moe=True),
        ],
    )
    assert comparison.table().splitlines() == [
        "experiment    loss     bpb     diff  best at  params  tokens  time  changed",
        "better      2.5000  9.0000  -0.5000       20   1.26M   1.28k   75s  model.moe=true",
        "baseline    3.0000  1.0000                20   1.26M   1.28k   75s",
        "worse       3.2500  1.0000  +0.2500       20   1.26M   1.28k   75s  model.n_head=1 train.beta1=0.5",
        "                                                                    train.beta2=0.5",
    ]


def test_other_tokenizers_are_compared_in_bits_per_byte() -> None:
    comparison = Comparison(
        experiment("baseline", 3.0, bpb=2.0), [experiment("bytes", 2.0, bpb=2.5, tokenizer__name="byte")]
    )
    assert names(comparison) == ["baseline", "bytes"]
    assert comparison.difference(comparison.rows[1]) == 0.5
    assert "bits per byte" in comparison.table().splitlines()[-1]


def test_another_text_does_not_compare() -> None:
    comparison = Comparison(
        experiment("baseline", 3.0), [experiment("other", 1.0, data__dataset="x"), experiment("same", 3.5)]
    )
    assert names(comparison) == ["baseline", "same", "other"]
    assert comparison.difference(comparison.rows[2]) is None
    assert "another text" in comparison.table().splitlines()[-1]


def test_what_has_no_figures_comes_last_with_its_state() -> None:
    waiting = experiment("waiting", None, model__n_head=1)
    queued = Experiment(waiting.name, waiting.params, {}, "queued")
    comparison = Comparison(experiment("baseline", None), [queued, experiment("done", 3.0)])
    assert names(comparison) == ["done", "baseline", "waiting"]
    lines = comparison.table().splitlines()
    assert lines[1].split()[:4] == ["done", "3.0000", "1.0000", "20"], "no baseline to differ from"
    assert lines[3].split() == ["waiting", "queued", "model.n_head=1"]


def test_the_table_fits_whatever_was_changed(tmp_path: Path) -> None:
    many: dict[str, Any] = {
        "model__learned_stopping_controller_weight": 1.5e-07,
        "data__dataset": "a-dataset-with-quite-a-long-name-" * 3,
        "baselines__models": ["unigram", "a-model-with-a-long-name" * 5],
        "train__max_iters": 10**9,
    }
    long = experiment("a-name-of-an-experiment-that-is-far-too-long" * 2, 12345.678, **many)
    comparison = Comparison(experiment("baseline", 3.0), [long])
    assert max(map(len, comparison.table().splitlines())) <= WIDTH
    comparison.write_csv(tmp_path / "experiments.csv")
    with (tmp_path / "experiments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["baseline", long.name]
    assert rows[1]["train.max_iters"] == "1000000000" and rows[0]["train.max_iters"] == "20"
    assert rows[1]["val_loss"] == "12345.678" and float(rows[1]["model.learned_stopping_controller_weight"])


def test_the_picture_names_each_experiment_once_beside_its_loss(tmp_path: Path) -> None:
    made = Comparison(experiment("baseline", 3.0), [experiment("one", 2.5), experiment("two", 2.501)])
    panels = axes_of(lambda: made.draw(tmp_path / "experiments.png"))
    assert [axes.get_xlabel() for axes in panels] == ["parameters", "seconds of training", "training tokens"]
    assert panels[0].get_ylabel() == "validation loss (nats per token)"
    assert [len(axes.texts) for axes in panels] == [0, 0, 3]
    assert set(texts_in(panels[-1])) == {"baseline 3.000", "one 2.500", "two 2.501"}
    heights = {text.get_text(): text.get_window_extent().y0 for text in panels[-1].texts}
    assert heights["one 2.500"] < heights["two 2.501"] < heights["baseline 3.000"]


def test_the_picture_needs_figures_only(tmp_path: Path) -> None:
    picture = tmp_path / "experiments.png"
    waiting = Experiment("waiting", BASE, {}, "queued")
    Comparison(experiment("baseline", 3.0), [experiment("one", 2.5), waiting]).draw(picture)
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    Comparison(experiment("baseline", 3.0), [experiment("one", 2.5)]).draw(picture)
    assert picture.read_bytes() == first
