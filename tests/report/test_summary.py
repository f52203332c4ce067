"""The summary has the losses in order, a sample, and only files that exist."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pipeline.config.errors import UserError
from pipeline.config.paths import LOG, MODEL, RECORD
from pipeline.report.png import save_picture
from pipeline.report.summary import summary
from pipeline.serve.samples import write_samples
from pipeline.storage.checksums import write_checked_json, write_record
from pipeline.storage.files import write_json, write_text
from tests import tiny

METRICS = {"params": 1_234_567, "val_loss": 4.0, "val_bpb": 1.5, "best_step": 20, "seconds": 61.4}
FINISHED = {"steps": 20, "saved": "best", "device": "cpu", "init_from": "scratch", "data": "of tiny"}


WEIGHTS = hashlib.sha256(b"the weights").hexdigest()


def publish(metrics: dict[str, Any] = METRICS, **finished: Any) -> None:
    write_json(Path("results/metrics.json"), metrics)
    write_record(
        RECORD, {"finished": {**FINISHED, **finished}}, [Path("results/metrics.json"), LOG, *MODEL.iterdir()]
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_text(LOG, "step,val_loss\n0,5.25\n10,3.9\n")
    write_text(MODEL / "model.safetensors", "the weights")
    publish()
    for name, bpb in (("trigram", 1.6), ("xz", 1.4)):
        write_checked_json(
            Path(f"results/baselines/{name}.json"), {"val_loss": 3 * bpb, "val_bpb": bpb, "data": "of tiny"}
        )
    return tmp_path / "results"


def test_the_best_comes_first(results: Path) -> None:
    table = summary(tiny.params()).split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["xz", "this", "trigram,"]
    assert table[3].startswith("trigram, interpolated  ")
    assert table[0] == "Validation loss of tiny        nats per token  bits per byte"
    assert table[2] == "this model (1.23M parameters)          4.0000         1.5000"


def test_only_what_is_there_is_named(results: Path) -> None:
    text = summary(tiny.params())
    assert "results/metrics.json   the figures to compare (61 s of training, cpu)" in text
    assert "results/samples.txt" not in text and "A sample" not in text
    write_samples(results / "samples.txt", ["the old\nship", "another"], model="others")
    write_text(results / "report.html", "of other weights")
    save_picture(Figure(), results / "depth.png", model="of other weights")
    text = summary(tiny.params())
    assert "samples.txt" not in text and "A sample" not in text and "depth.png" not in text
    assert "report.html" not in text
    write_text(results / "report.html", f"of the weights {WEIGHTS}")
    write_samples(results / "samples.txt", ["the old\nship", "another"], WEIGHTS)
    text = summary(tiny.params())
    assert "A sample\n  the old\n  ship\n\n" in text and "another\n" not in text
    assert "results/samples.txt    all samples" in text
    assert "results/report.html    all of this on one page" in text


def test_damaged_results_are_refused(results: Path) -> None:
    write_samples(results / "samples.txt", ["the old ship"], WEIGHTS)
    save_picture(Figure(), results / "depth.png", model=WEIGHTS)
    assert "the old ship" in summary(tiny.params())
    for path in [*results.glob("*.*"), *results.glob("baselines/*")]:
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            damaged = bytearray(content)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=path.name):
                summary(tiny.params())
        path.write_bytes(content)


def test_a_start_and_a_better_step_are_told(results: Path) -> None:
    publish(METRICS | {"best_step": 10}, init_from="gpt2", last_val_loss=4.1)
    text = summary(tiny.params())
    assert "It started from gpt2, at 5.2500 (on train.eval_iters batches)." in text
    assert "The last model, of step 20, has 4.1000." in text
    publish(METRICS | {"best_step": 10}, saved="last", best_val_loss=3.9)
    assert "The best model, of step 10, has 3.9000." in summary(tiny.params())


def test_without_results_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no results yet; run `dvc repro` first"):
        summary(tiny.params())


def test_baselines_of_another_text_are_not_compared(results: Path) -> None:
    write_checked_json(results / "baselines/xz.json", {"val_loss": 1.0, "val_bpb": 0.3, "data": "of another"})
    assert "xz" not in summary(tiny.params()).split("\n\n")[0]


@pytest.mark.parametrize("name", ["metrics.json", "log.csv", "model/model.safetensors"])
def test_results_of_two_runs_are_refused(results: Path, name: str) -> None:
    write_text(results / name, "of another run")
    with pytest.raises(UserError, match=f"{name}: not of the run .*; run `dvc repro -f -s train`"):
        summary(tiny.params())
    (results / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no .*; .*run `dvc repro"):
        summary(tiny.params())


def test_results_without_a_record_are_refused(results: Path) -> None:
    RECORD.unlink()
    with pytest.raises(UserError, match="results/run.json: no such file; .* run `dvc repro -f -s train`"):
        summary(tiny.params())


def test_results_of_an_earlier_version_are_refused(results: Path) -> None:
    write_record(RECORD, {}, [Path("results/metrics.json"), LOG, *MODEL.iterdir()])
    with pytest.raises(UserError, match="run.json: an earlier version wrote it; run `dvc repro -f -s train`"):
        summary(tiny.params())
