"""What `dvc plots show` draws with: no script from the web, and no points that were never measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import vl_convert
from dvc_render import VegaRenderer, render_html

from pipeline.report.dvc_plots_page import write_template

PLOT_TEMPLATES = Path(__file__).parents[2] / ".dvc" / "plots"
ROWS = [
    {"step": "0", "val_loss": "4.2", "rev": "workspace"},
    {"step": "10", "val_loss": "", "rev": "workspace"},
    {"step": "20", "val_loss": "3.5", "rev": "workspace"},
    {"step": "100", "val_loss": "3.0", "rev": "workspace"},
]


def renderer() -> Any:
    return VegaRenderer(
        [dict(row) for row in ROWS],
        "loss",
        x="step",
        y="val_loss",
        template="curve",
        template_dir=PLOT_TEMPLATES,
    )


def test_page_brings_its_scripts_along(tmp_path: Path) -> None:
    template = tmp_path / "page.html"
    write_template(template)
    page = Path(render_html([renderer()], tmp_path / "plots" / "index.html", template)).read_text("utf-8")
    assert not re.search(r"""<(script|link)[^>]+(src|href)=""", page)
    assert page.index("window.vegaEmbed=") < page.index("vegaEmbed('#loss'")


def test_curve_leaves_out_rows_without_a_value() -> None:
    drawing = vl_convert.vegalite_to_svg(json.dumps(renderer().get_filled_template()))
    point = r'step: ([\d.]+); val_loss: ([\d.]+)[^"]*" role="graphics-symbol" aria-roledescription="point"'
    points = re.findall(point, drawing)
    assert sorted((float(step), float(loss)) for step, loss in points) == [(0, 4.2), (20, 3.5), (100, 3.0)]
