"""The rows of the table: which programs they need, how they compare them, and what passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import gpu
from bench.docs import BLOCK, PAGE, write_docs
from bench.harness import Figures
from bench.loss_curves import draw_curves
from bench.speed import ONLY_IF_ASKED, ROWS, SHOWN, TRIALS, Row, chosen, lines, markdown, split_table
from pipeline.config.errors import UserError
from pipeline.storage.files import write_text
from tests import tiny
from tests.conftest import Ended

RATIO = Row("a", "whole run", "whole", "here", "nanoGPT", "seconds", limit=0.8)


def seconds(*values: float) -> list[Figures]:
    return [{"seconds": value} for value in values]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_rows_have_names_of_their_own_and_trials_and_quantities_that_there_are() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.trial for row in ROWS} == TRIALS.keys()
    assert {row.quantity for row in (*ROWS, *gpu.ROWS)} == SHOWN.keys()


def test_ratios_are_those_of_neighboring_runs() -> None:
    """A machine that slows down between the runs does not move the ratio, though it moves the medians."""
    measured = {"whole": {"nanoGPT": seconds(50, 100, 200), "here": seconds(25, 90, 160)}}
    (line,) = lines([RATIO], measured)
    assert (line.peer, line.here, line.measured, line.met) == (100, 90, 0.8, True)


def test_every_way_to_compare_has_its_limit() -> None:
    measured = {
        "whole": {
            "nanoGPT": [{"val_loss": 1.9}, {"val_loss": 1.8}],
            "here": [{"val_loss": 1.5}, {"val_loss": 1.7}],
        }
    }
    worst = Row("b", "loss", "whole", "here", "nanoGPT", "val_loss", 1.65, "worst")
    margin = Row("c", "loss", "whole", "here", "nanoGPT", "val_loss", 0.2, "margin", at_least=True)
    figure = Row("d", "loss", "whole", "here", None, "val_loss", 1.6, "figure")
    without = Row("e", "loss", "whole", "here", "nanoGPT", "val_loss")
    found = lines([worst, margin, figure, without], measured)
    assert [line.measured for line in found[:3]] == pytest.approx([1.7, 0.1, 1.6])
    assert [line.met for line in found] == [False, False, True, None]


def test_the_table_says_the_limit_of_the_machine() -> None:
    step = Row("step", "step", "step-128", "float32", "nanoGPT", "step", 0.9)
    measured = {
        "step-128": {"nanoGPT": [{"step": 0.030}], "float32": [{"step": 0.0141, "bound": 0.0098}]},
        "whole": {"nanoGPT": seconds(60.0), "here": seconds(54.0)},
    }
    table = markdown(lines([step, RATIO], measured))
    assert cells(table)[2:] == [
        ["step", "30.00 ms", "14.10 ms", "9.80 ms", "0.470", "≤ 0.9", "pass"],
        ["whole run", "60.0 s", "54.0 s", "", "0.900", "≤ 0.8", "MISS"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_the_parts_of_a_step_are_medians_of_the_runs() -> None:
    parts = dict.fromkeys(
        ("data", "forward", "backward", "optimizer", "logging", "rest", "step", "bound"), 0.001
    )
    runs = [{**parts, "forward": value} for value in (0.010, 0.020, 0.400)]
    assert cells(split_table({"preset": runs}))[2][:3] == ["preset", "1.00 ms", "20.00 ms"]


def test_only_picks_rows_and_the_long_ones_have_to_be_asked_for() -> None:
    rows, picture = chosen("")
    assert {row.name for row in ROWS} - {row.name for row in rows} == set(ONLY_IF_ASKED)
    assert picture
    rows, picture = chosen("step, small")
    assert [row.name for row in rows] == ["step", "small"] and not picture
    assert chosen("picture") == ([], True)
    with pytest.raises(UserError, match=r"ONLY=stpe: not a row; did you mean step\?"):
        chosen("stpe")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "fasst"], "error: ONLY=fasst: not a row; did you mean fast"),
        (
            ["--only", "step", "--clone", "nowhere"],
            "error: nowhere: not a clone of github.com/karpathy/nanoGPT, it has no train.py",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(
    stage: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ended = stage("speed", *arguments)
    assert ended.status == 2 and ended.err.startswith(expected) and ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_curves_are_drawn(tmp_path: Path) -> None:
    draw_curves(
        tmp_path / "curves.png", {"nanoGPT": [(10.0, 2.5), (90.0, 1.9)], "here": [(5.0, 2.2), (14.0, 1.87)]}
    )
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_docs_are_filled_in_with_what_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [
        f"<!-- made by `python -m bench docs` from bench-{name} -->\n\nold {name}\n\n<!-- end -->\n"
        for name in ("a", "b")
    ]
    write_text(PAGE, "# Page\n\n" + "text\n".join(blocks))
    write_text(Path("results/bench-a.md"), "# A\n\nnew\n\nlines\n")
    write_text(Path("results/bench-a.png"), "picture")
    write_docs()
    text = PAGE.read_text()
    assert (
        "\n\nnew\n\nlines\n\n![Validation loss against time](images/bench-a.png)\n\n<!-- end -->" in text
        and "old a" not in text
        and "old b" in text
    )
    assert Path("docs/images/bench-a.png").read_text() == "picture"
    write_docs()
    assert PAGE.read_text() == text


def test_the_page_has_a_place_for_the_tables() -> None:
    found = BLOCK.findall((tiny.ROOT / PAGE).read_text())
    assert {name for _, name, _ in found} == {
        "bench-speed", "bench-speed-small", "bench-gpu", "bench-fork", "bench-interop", "bench-checkpoint",
        "bench-scale", "bench-report", "bench-serve",
    }  # fmt: skip
