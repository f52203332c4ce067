"""The report of a sweep: what it found, beside what was published, and how far to trust it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.scaling_law import Law, Point
from pipeline.report.scaling import ScalingReport, formula
from tests.figures import axes_of, texts_in

LAW = Law(E=1.5, A=60.0, B=300.0, alpha=0.28, beta=0.4)
SIZES, TOKENS = (3e5, 6e5, 1e6, 2e6, 3e6), (1e5, 4e5, 1.6e6, 6.4e6)


def report(sizes: tuple[float, ...] = SIZES, train_tokens: int = 7_000_000) -> ScalingReport:
    points = [Point(n, d, 6 * n * d, n * d / 1e9, LAW.loss(n, d)) for n, d in product(sizes, TOKENS)]
    names = {n: f"{number}x{32 * number}" for number, n in enumerate(sizes, start=1)}
    return ScalingReport(points, names, "Scaling on tiny", train_tokens)


def test_the_text_has_the_law_the_published_ones_and_the_best_size() -> None:
    made = report()
    predictions = made.predict([1e14], [1.0])
    text = made.text(predictions)
    assert "fitted to 20 runs" in text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["these runs"][-6:] == ["1.500", "60", "300", "0.280", "0.400", "0.588"]
    assert rows["Hoffmann et al. 2022"][-6:] == ["1.693", "406.4", "410.7", "0.339", "0.285", "0.456"]
    assert rows["Besiroglu et al. 2024"][-6:] == ["1.817", "482", "2085", "0.348", "0.366", "0.513"]
    by_flops, by_hours = predictions
    assert by_flops.best is not None and by_hours.best is not None and by_hours.losses is not None
    assert by_flops.best.params * by_flops.best.tokens == pytest.approx(1e14 / 6, rel=1e-3)
    assert by_hours.best.params * by_hours.best.tokens == pytest.approx(3600e9, rel=1e-3)
    assert by_hours.flops == pytest.approx(6 * 3600e9, rel=1e-3)
    low, high = by_hours.losses
    assert low <= by_hours.best.loss + 1e-3 and by_hours.best.loss - 1e-3 <= high


def test_remarks_say_where_the_fit_is_weak() -> None:
    def remarks(made: ScalingReport, *flops: float) -> str:
        return "\n".join(made.remarks(made.predict(flops, [])))

    good = remarks(report())
    assert "few" not in good and "span" not in good and "text" not in good and "extrapolation" not in good
    weak = remarks(report(SIZES[2:4], train_tokens=1_600_000), 1e16)
    assert "8 runs are few for five constants" in weak
    assert "sizes span 2.0x and tokens 64.0x" in weak
    assert "read the text 4.0 times" in weak
    assert "its row is an extrapolation" in weak
    assert "no size between the smallest and the largest" in weak


def test_json_has_all_figures_and_is_json() -> None:
    made = report()
    values = json.loads(json.dumps(made.as_json(made.predict([1e14], [1.0]))))
    assert values["law"]["alpha"]["value"] == pytest.approx(0.28, abs=1e-3)
    assert values["published"]["Hoffmann et al. 2022"]["B"] == 410.7
    assert [each["budget"] for each in values["predictions"]] == ["1e+14 FLOPs", "1 h here"]
    assert len(values["iso_flop"]["minima"]) == len(made.minima) > 0


def test_the_picture_names_each_size_and_each_amount_of_compute(tmp_path: Path) -> None:
    made = report()
    runs, equal = axes_of(lambda: made.draw(tmp_path / "results" / "scaling.png"))
    assert {"1x32, 300k", "2x64, 600k", "3x96, 1.00M", "4x128, 2.00M", "5x160, 3.00M"} <= set(texts_in(runs))
    assert (runs.get_xlabel(), equal.get_xlabel()) == ("training tokens", "parameters")
    assert runs.get_ylabel() == "validation loss (nats per token)"
    assert {f"{minimum.flops:.1e} FLOPs" for minimum in made.minima} <= set(texts_in(equal))
    stars = [line for line in equal.lines if line.get_marker() == "*"]
    at = [np.asarray(star.get_xydata()).ravel().tolist() for star in stars]
    assert at == [pytest.approx([minimum.params, minimum.loss]) for minimum in made.minima]
    assert runs.figure is not None and formula(made.law) in runs.figure.get_suptitle()


def test_without_minima_the_picture_shows_the_law_alone(tmp_path: Path) -> None:
    _, equal = axes_of(lambda: report(SIZES[2:4]).draw(tmp_path / "scaling.png"))
    assert not [line for line in equal.lines if line.get_marker() == "*"]
    assert sum("FLOPs" in text for text in texts_in(equal)) == 1
