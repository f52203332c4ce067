"""What `dvc plots show` draws with: no script from the web, and no points that were never measured."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import quickjs
from dvc_render import VegaRenderer, render_html

from pipeline.report.depth_curve import write_lines
from pipeline.report.dvc_plots_page import SCRIPT, write_template

PLOT_TEMPLATES = Path(__file__).parents[2] / ".dvc" / "plots"
STEPS = [("0", "4.2"), ("10", ""), ("100", "3.0"), ("20", "3.5")]


def renderer(revisions: tuple[str, ...] = ("workspace",), **properties: Any) -> Any:
    rows = [{"step": step, "val_loss": loss, "rev": rev} for rev in revisions for step, loss in STEPS]
    about = {"x": "step", "y": "val_loss", "template": "curve", "template_dir": PLOT_TEMPLATES}
    return VegaRenderer(rows, "loss", **(about | properties))


def drawn(spec: Any) -> ElementTree.Element:
    """What the page's script draws for a specification, as a tree of SVG or HTML."""
    engine = quickjs.Function("drawn", SCRIPT.read_text(encoding="utf-8"))
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", engine(spec)))


def points(tree: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Where each point is, by what is shown beside the mouse."""
    return {
        circle.findtext("title") or "": (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        for circle in tree.iter("circle")
    }


def test_page_brings_its_script_along(tmp_path: Path) -> None:
    template = tmp_path / "page.html"
    write_template(template)
    page = Path(render_html([renderer()], tmp_path / "plots" / "index.html", template)).read_text("utf-8")
    assert not re.search(r"""<(script|link)[^>]+(src|href)=""", page)
    assert page.index("function vegaEmbed(") < page.index("vegaEmbed('#loss'")


def test_page_draws_into_the_plot_that_dvc_names() -> None:
    context = quickjs.Context()
    context.eval(SCRIPT.read_text(encoding="utf-8"))
    context.eval("""
        const into = {};
        const put = (name) => (place, html) => into[name] = html;
        const document = {querySelector: (name) => ({insertAdjacentHTML: put(name)})};
    """)
    (spec,) = re.findall(r"(?s)var spec = (.*?);\s*vegaEmbed", renderer().generate_html())
    context.set("text", spec)
    context.eval("vegaEmbed('#loss', JSON.parse(text))")
    assert context.eval("into['#loss'].startsWith('<svg ')")


def test_points_are_where_their_numbers_are_and_rows_without_a_value_are_left_out() -> None:
    found = points(drawn(renderer().get_filled_template()))
    assert len(found) == 3
    first, second, last = (
        found[f"rev: workspace\nstep: {step}\nval_loss: {loss}"]
        for step, loss in (("0", "4.2"), ("20", "3.5"), ("100", "3.0"))
    )
    assert second[0] - first[0] == pytest.approx((last[0] - first[0]) * 0.2)
    assert second[1] - first[1] == pytest.approx((last[1] - first[1]) * (4.2 - 3.5) / (4.2 - 3.0))
    assert last[0] > first[0] and last[1] > first[1], "to the right, and downwards"


def test_lines_go_from_left_to_right_one_for_each_revision_in_its_color() -> None:
    spec = renderer(("workspace", "main", "a<b")).get_filled_template()
    tree = drawn(spec)
    lines = list(tree.iter("polyline"))
    assert [line.attrib["stroke"] for line in lines] == spec["encoding"]["color"]["scale"]["range"]
    for line in lines:
        across = [float(point.split(",")[0]) for point in line.attrib["points"].split()]
        assert across == sorted(across) and len(across) == 3
    written = [text.text for text in tree.iter("text")]
    assert {"workspace", "main", "a<b", "step", "val_loss"} <= set(written)


def test_two_columns_are_told_apart_by_their_dashes() -> None:
    rows = [
        {"step": "1", "loss": "3", "field": field, "filename": "log.csv", "rev": "workspace"}
        for field in ("train_loss", "val_loss")
    ]
    columns = [{"filename": "log.csv", "field": field} for field in ("train_loss", "val_loss")]
    about = {"x": "step", "y": "loss", "template": "curve", "template_dir": PLOT_TEMPLATES}
    spec = VegaRenderer(rows, "loss", anchors_y_definitions=columns, **about).get_filled_template()
    lines = list(drawn(spec).iter("polyline"))
    assert len({line.attrib["stroke-dasharray"] for line in lines}) == 2
    assert len({line.attrib["stroke"] for line in lines}) == 1


def test_baselines_are_lines_of_their_own_with_their_names_beside_them(tmp_path: Path) -> None:
    """As dvc.yaml has them: the rows of a second file, with a column that the first one lacks."""
    write_lines(tmp_path / "lines.csv", {"bigram": 4.0, "xz": 3.0}, {"depth": (1, 2), "step": (0, 100)})
    with (tmp_path / "lines.csv").open(newline="") as file:
        lines = [
            dict(row, filename="lines.csv", field="val_loss", rev="workspace") for row in csv.DictReader(file)
        ]
    rows = [
        {"step": step, "val_loss": loss, "filename": "log.csv", "field": "val_loss", "rev": "workspace"}
        for step, loss in STEPS
    ]
    files = [{"filename": name, "field": "val_loss"} for name in ("log.csv", "lines.csv")]
    about = {"x": "step", "y": "val_loss", "template": "curve", "template_dir": PLOT_TEMPLATES}
    spec = VegaRenderer(rows + lines, "loss", anchors_y_definitions=files, **about).get_filled_template()
    tree = drawn(spec)
    level = [
        {float(point.split(",")[1]) for point in line.attrib["points"].split()}
        for line in tree.iter("polyline")
    ]
    assert sorted(map(len, level)) == [1, 1, 3], "two baselines, each level, and the curve"
    assert {"bigram 4.000", "xz 3.000"} <= {text.text for text in tree.iter("text")}
    assert len(points(tree)) == 3, "those of the curve"
    marks = [layer["mark"]["type"] for layer in spec["layer"]]
    assert marks == ["line", "text"] and spec["encoding"]["detail"] == {"field": "baseline"}


@pytest.mark.parametrize("losses", [["2.5"], ["2.5", "2.5"], ["1e-9", "2e-9"], ["1000000", "-1000000"]])
def test_any_range_has_numbers_on_its_axes(losses: list[str]) -> None:
    rows = [{"step": str(step), "val_loss": loss, "rev": "a"} for step, loss in enumerate(losses)]
    spec = renderer().get_filled_template() | {"data": {"values": rows}}
    tree = drawn(spec)
    assert len(points(tree)) >= 1 and len(list(tree.iter("path"))) >= 2
    assert "NaN" not in ElementTree.tostring(tree, encoding="unicode")


def test_what_cannot_be_drawn_says_so() -> None:
    bars = renderer(template="confusion").get_filled_template()
    assert "curve.json only" in "".join(drawn(bars).itertext())
    nothing = renderer().get_filled_template() | {"data": {"values": []}}
    assert "Nothing was measured" in "".join(drawn(nothing).itertext())
