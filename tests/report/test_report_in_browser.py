"""The report in Chromium: opened from disk, clicked, driven by keyboard, narrow, dark, accessible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.browser import grave_findings, scrolls_sideways, visiting
from pipeline.config.params import load_params
from pipeline.report.report import report_of
from pipeline.report.report_page import write_page
from pipeline.report.run_files import find_run, stored_run
from tests.browser import marks
from tests.report.conftest import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = marks
SECTIONS = ["quality", "training", "depth", "lens", "experts", "samples", "health", "parameters", "reproduce"]


@pytest.fixture
def page_file(reported: Path) -> Path:
    return reported / "results/report.html"


@pytest.fixture(scope="module")
def compared(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run beside one that is not finished and has no model yet."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(reported, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("DVC_ROOT", raising=False)
        finished = find_run("")
        assert finished is not None
        shutil.copytree(
            finished, "runs/begun", ignore=shutil.ignore_patterns("finished", "best", "later.json")
        )
        runs = [stored_run(HOSTILE, finished), stored_run("begun", Path("runs/begun"))]
        write_page(Path("page.html"), report_of(runs, load_params()))
    return folder / "page.html"


def data_of(page: Path) -> dict[str, Any]:
    """The values that a page draws."""
    scripts = page.read_text(encoding="utf-8").partition('id="report">')[2]
    values: dict[str, Any] = json.loads(scripts.partition("</script>")[0])
    return values


def depth_panel(page: Page) -> str:
    return page.inner_text("#depth .panel")


def lens_panel(page: Page) -> str:
    return page.inner_text("#lens .panel")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_opens_from_disk_for_everyone(browser: Browser, page_file: Path, width: int, dark: bool) -> None:
    with visiting(browser, page_file, width=width, dark=dark) as visit:
        page = visit.page
        folded = page.locator("details")
        for number in range(folded.count()):  # what is folded is checked too
            folded.nth(number).locator("summary").click()
            folded.nth(number).locator("> :nth-child(2)").wait_for()
        assert not scrolls_sideways(page)
        assert grave_findings(page) == []
        assert visit.errors == [] and visit.requests == [page_file.as_uri()]
        ids = page.eval_on_selector_all("section", "all => all.map(one => one.id)")
        assert ids == SECTIONS
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") != dark


def test_text_and_names_stay_text(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        page = visit.page
        assert HOSTILE in page.inner_text(".lead")
        passage = "".join(page.locator("#lens [role=option]").all_text_contents())
        assert passage == HOSTILE[: len(passage)] and len(passage) == 8
        assert page.query_selector("img") is None and page.title() == "A language model trained on tiny"


def test_the_slider_shows_loss_compute_and_a_text_at_each_depth(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        page = visit.page
        slider = page.locator("#depth input[type=range]")
        as_trained = depth_panel(page)
        assert "100 % of the model's FLOPs" in as_trained
        slider.focus()
        page.keyboard.press("ArrowLeft")
        fewer = depth_panel(page)
        assert fewer != as_trained and "nats per token" in fewer and "100 %" not in fewer
        assert slider.get_attribute("aria-valuetext") == "2 steps"
        page.keyboard.press("End")
        assert page.inner_text("#depth output") == "6 steps"
        slider.click(position={"x": 5, "y": 8})
        assert page.inner_text("#depth output") == "1 step"
        seen = {as_trained, fewer, depth_panel(page)}
        assert len({text.split("\n\n")[0] for text in seen}) == 3


def test_a_text_of_line_ends_takes_one_line(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        shown = visit.page.evaluate("written('a' + '\\n'.repeat(60) + 'b\\n\\nc').textContent")
        assert shown == "a↵ × 60\nb\n\nc"


def test_the_lens_shows_predictions_by_click_and_by_keyboard(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        page = visit.page
        page.locator("#lens [role=option]").nth(2).click()
        clicked = lens_panel(page)
        assert "“s” after “</”" in clicked and clicked.count("%") >= 6 * 5 and "◀" in clicked
        page.locator("#lens [role=listbox]").focus()
        page.keyboard.press("ArrowRight")
        assert "“c” after “</s”" in lens_panel(page)
        chosen = page.get_attribute("#lens [role=listbox]", "aria-activedescendant")
        assert page.get_attribute(f"#{chosen}", "aria-selected") == "true"
        page.keyboard.press("Home")
        assert "nothing is predicted" in lens_panel(page)


def test_the_lens_is_colored_by_the_loss_at_the_chosen_depth(browser: Browser, page_file: Path) -> None:
    def heat(page: Page) -> list[str]:
        script = "all => all.map(one => one.style.getPropertyValue('--heat'))"
        found: list[str] = page.eval_on_selector_all("#lens [role=option]", script)
        return found

    with visiting(browser, page_file) as visit:
        page = visit.page
        before = heat(page)
        page.locator("#lens input[type=range]").focus()
        page.keyboard.press("Home")
        assert before[0] == "0" and heat(page) != before


def test_the_loss_is_shown_against_steps_tokens_or_time(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        page = visit.page
        chart = page.locator("#training svg").first
        assert "uniform at" in (chart.get_attribute("aria-label") or "")
        for name in ("tokens", "time"):
            page.get_by_role("radio", name=name).check()
            label = page.locator("#training svg").first.get_attribute("aria-label") or ""
            assert f"nats per token against {name}" in label
        page.locator("#training summary").first.click()
        page.locator("#training tbody tr").nth(3).wait_for()  # a row for each logged step


def test_experts_and_health_can_be_chosen(browser: Browser, page_file: Path) -> None:
    with visiting(browser, page_file) as visit:
        page = visit.page
        first = page.inner_text("#experts table")
        page.select_option("#experts select", index=1)
        assert page.inner_text("#experts table") != first and "expert 3" in first
        page.select_option("#health select", label="Size (RMS) of the residual stream")
        assert "residual stream" in page.inner_text("#health figcaption")


def test_runs_side_by_side_and_one_of_them_closer(browser: Browser, compared: Path) -> None:
    with visiting(browser, compared, width=390) as visit:
        page = visit.page
        assert page.locator("#runs tbody tr").count() == 2 and HOSTILE in page.inner_text("#runs")
        label = page.locator("#training svg").first.get_attribute("aria-label") or ""
        assert f"{HOSTILE} goes from" in label and "begun goes from" in label
        assert page.locator("#lens").count() == 1 and page.locator("main section[id=parameters]").count() == 1
        page.locator(".chooser select").select_option("begun")
        assert "It is not finished" in page.inner_text(".lead") and page.locator("#lens").count() == 0
        assert "lens" not in page.inner_text("nav")
        assert not scrolls_sideways(page) and visit.errors == [] and grave_findings(page) == []


def test_a_run_that_was_only_evaluated_has_a_page(browser: Browser, reported: Path, tmp_path: Path) -> None:
    values = data_of(reported / "results/report.html")
    (run,) = values["runs"]
    run["figures"]["tokens"] = 0
    run["training"] = {name: [] for name in run["training"]}
    run["validation"] = {name: numbers[:1] for name, numbers in run["validation"].items()}
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html") as visit:
        assert visit.page.locator("#training svg").count() == 1
        assert visit.page.inner_text("#training").count("Nothing was measured") == 2
        visit.page.get_by_role("radio", name="time").check()
        assert "was only evaluated on tiny" in visit.page.inner_text(".lead") and visit.errors == []


@pytest.mark.parametrize(
    ("change", "said", "best"),
    [
        ({}, "read the same tokens", 1),
        ({"fingerprint": "other"}, "Compare bits per byte", 1),
        ({"name": "other", "fingerprint": "other"}, "different texts", 0),
    ],
)
def test_the_page_says_what_can_be_compared(
    browser: Browser, compared: Path, tmp_path: Path, change: dict[str, str], said: str, best: int
) -> None:
    values = data_of(compared)
    finished, begun = values["runs"]
    values["runs"] = [begun, finished]
    finished["data"] |= change
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html") as visit:
        shown = visit.page.inner_text("#runs")
        assert said in shown and "begun (not finished)" in shown and shown.count("(best)") == best
        colors = {
            visit.page.locator(place, has_text="</script>")
            .locator(".swatch")
            .first.evaluate("one => one.style.background")
            for place in ("#runs tr", "#depths .legend li")
        }
        assert colors == {"var(--c1)"} and visit.errors == []


def test_a_token_is_underlined_where_its_panel_says_that_stopping_ended_early(
    browser: Browser, page_file: Path, tmp_path: Path
) -> None:
    values = data_of(page_file)
    lens = values["runs"][0]["lens"]
    lens["steps_taken"] = [1, *[lens["trained_depth"]] * (len(lens["tokens"]) - 1)]
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html") as visit:
        page = visit.page
        options = page.locator("#lens [role=option]")
        marks = options.evaluate_all("all => all.map(one => one.classList.contains('early'))")
        assert [index for index, early in enumerate(marks) if early] == [1]
        options.nth(1).click()
        assert "ends after 1 of at most 3" in lens_panel(page)


def test_numbers_that_differ_look_different(browser: Browser, page_file: Path, tmp_path: Path) -> None:
    """On the axis of a flat curve, and in the table of a long training."""
    values = data_of(page_file)
    (run,) = values["runs"]
    run["depth"] = [{"depth": depth, "val_loss": 3 + depth / 1e5} for depth in range(1, 7)]
    run["training"] |= {"step": list(range(12300, 12300 + len(run["training"]["step"])))}
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html") as visit:
        page = visit.page
        ticks = page.locator("#depth svg text[text-anchor=end]").all_text_contents()
        assert len(ticks) == len(set(ticks)) > 2
        page.locator("#training summary").nth(1).click()
        shown = page.locator("#training details tbody th")
        shown.nth(2).wait_for()
        steps = shown.all_text_contents()
        assert steps[0] == "12,300" and len(steps) == len(set(steps)) > 2


def test_a_model_of_one_layer_has_no_slider(browser: Browser, page_file: Path, tmp_path: Path) -> None:
    values = data_of(page_file)
    (run,) = values["runs"]
    run["depth"], run["written"] = run["depth"][:1], run["written"][:1]
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html") as visit:
        assert visit.page.locator("#depth").count() == 0 and visit.errors == []


def test_names_of_parameters_stay_readable_beside_many_runs(
    browser: Browser, compared: Path, tmp_path: Path
) -> None:
    values = data_of(compared)
    values["runs"] *= 4
    values["runs"] = [run | {"name": f"0123456789abcde{place}"} for place, run in enumerate(values["runs"])]
    changed = {"name": "model.block_size", "value": "1", "default": "2"}
    values["runs"][0] = values["runs"][0] | {"parameters": [changed]}
    write_page(tmp_path / "page.html", values)
    with visiting(browser, tmp_path / "page.html", width=390) as visit:
        name = visit.page.locator("#differences .parameter", has_text="model.block_size").first
        assert name.evaluate("one => one.getClientRects()[0].height") < 30 and visit.errors == []
