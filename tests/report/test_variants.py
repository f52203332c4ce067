"""The picture of variants: the best first, with the spread over seeds, and each variant's loss by depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate.depth import mean_curve
from pipeline.report.variants import draw_variants
from tests.figures import axes_of, curve_of, data, texts_in


def test_variants_are_ordered_and_their_seeds_are_a_bar_and_a_band(tmp_path: Path) -> None:
    curves = [
        mean_curve([curve_of(400.0, 300.0, name="worse"), curve_of(420.0, 320.0, name="worse")]),
        mean_curve([curve_of(400.0, last, 240.0, name="best", trained_depth=2) for last in (200.0, 260.0)]),
    ]
    final, by_depth = axes_of(lambda: draw_variants(tmp_path / "variants.png", curves, "tiny"))
    assert [label.get_text() for label in final.get_yticklabels()] == ["best", "worse"]
    assert final.yaxis_inverted() and texts_in(final) == ["2.300", "3.100"]
    bars = [data(line)[0] for line in final.lines if len(data(line)[0]) == 2]
    assert bars == [[2.0, 2.6], [3.0, 3.2]]
    assert "mean of 2 seeds" in final.get_title()
    lines = {line.get_label(): data(line)[1] for line in by_depth.lines}
    assert lines["best"] == pytest.approx([4.0, 2.3, 2.4]) and lines["worse"] == pytest.approx([4.1, 3.1])
    rings = [line for line in by_depth.lines if line.get_fillstyle() == "none"]
    assert [data(ring)[0] for ring in rings] == [[2.0]], "of the one that goes on"
    assert len(by_depth.collections) == 2
    for label in (final.get_xlabel(), by_depth.get_ylabel()):
        assert label == "validation loss (nats per token)"


def test_a_variant_trained_once_has_no_bar(tmp_path: Path) -> None:
    curves = [
        curve_of(*(500.0 - number - step for step in range(3)), name=f"v{number}") for number in range(25)
    ]
    final, _ = axes_of(lambda: draw_variants(tmp_path / "variants.png", curves, "tiny"))
    assert final.get_title() == "final loss"
    looks = {(line.get_color(), line.get_marker()) for line in final.lines if line.get_marker() != "None"}
    assert len(looks) == 25, "colour and marker tell all of them apart"
