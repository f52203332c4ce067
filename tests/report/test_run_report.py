"""The report's values are those of the files that it reads, and its page holds them safely."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.config.params import DEFAULTS_FILE, PARAMS_FILE, load_params
from pipeline.config.paths import REPORT
from pipeline.report.report import report_of
from pipeline.report.report_page import page
from pipeline.report.run_files import find_run, named_run, published_run, stored_run
from pipeline.report.run_report import MOST_POINTS, MOST_ROWS, _averaged, _health
from pipeline.storage.files import write_text
from pipeline.track.csv_log import read_log
from pipeline.track.health_csv import COLUMNS
from stages.report import main as write_report
from tests.report.conftest import HOSTILE


class Scripts(HTMLParser):
    """Collects what is inside of each script element, as a browser cuts it."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def of_page(path: Path) -> dict[str, Any]:
    parser = Scripts()
    parser.feed(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = json.loads(parser.scripts[0])
    return values


def test_the_page_has_the_figures_of_the_run(project: Path) -> None:
    (run,) = of_page(REPORT)["runs"]
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert run["figures"] | metrics == run["figures"] | {"best_step": metrics["best_step"]}
    log = read_log(Path("results/log.csv"))
    assert run["training"]["train_loss"] == [row["train_loss"] for row in log if "train_loss" in row]
    assert run["validation"]["step"] == [row["step"] for row in log if "val_loss" in row]
    assert [one["name"] for one in run["baselines"]] == sorted(
        (one["name"] for one in run["baselines"]),
        key=lambda name: json.loads(Path(f"results/baselines/{name.partition(',')[0]}.json").read_text())[
            "val_bpb"
        ],
    )
    assert run["data"]["description"] == HOSTILE and "".join(run["lens"]["tokens"]) == HOSTILE[:8]
    assert [row["depth"] for row in run["depth"]] == run["lens"]["depths"] == [1, 2, 3, 4, 5, 6]
    assert [one["depth"] for one in run["written"]] == [1, 2, 3, 4, 5, 6]
    assert run["written"][2]["flops_share"] == 1.0
    assert run["samples"] and run["health"]["activation_rms"] and run["stopping"]


def test_experts_are_counted_over_all_tokens(project: Path) -> None:
    (run,) = of_page(REPORT)["runs"]
    assert [(one["layer"], one["run"]) for one in run["experts"]["layers"]][:2] == [("moe0", 1), ("moe0", 2)]
    assert sum(one["load"] for one in run["experts"]["layers"][0]["experts"]) == pytest.approx(2, abs=1e-3)


def test_what_differs_from_the_default_is_marked_and_commands_say_it(project: Path) -> None:
    (run,) = of_page(REPORT)["runs"]
    changed = {one["name"]: one["value"] for one in run["parameters"] if one["value"] != one["default"]}
    defaults, own = (load_params([], path).model_dump() for path in (DEFAULTS_FILE, PARAMS_FILE))
    for section in ("model", "train"):
        expected = {f"{section}.{key}" for key in own[section] if own[section][key] != defaults[section][key]}
        assert {name for name in changed if name.startswith(section)} == expected
    assert changed["model.moe_num_experts"] == "3"
    assert "#   model.moe_num_experts: 3" in run["commands"] and run["commands"][-1] == "make verify"


def test_a_finetuned_model_names_the_one_that_it_started_from(project: Path) -> None:
    published = published_run()
    facts = dict(published.facts)
    facts |= {"start": {"name": "my/model"}, "train": facts["train"] | {"init_from": "0123456789abcdef"}}
    (run,) = report_of([replace(published, facts=facts)], load_params())["runs"]
    assert '#   train.init_from: "my/model"' in run["commands"] and run["start"] == "my/model"
    assert "# with the same model that it started from: my/model" in run["commands"]
    assert not any("0123456789abcdef" in command for command in run["commands"])


def test_the_same_results_give_the_same_bytes(project: Path) -> None:
    before = REPORT.read_bytes()
    write_report()
    assert REPORT.read_bytes() == before
    assert len(before) < 3e6


def test_nothing_in_the_page_comes_from_elsewhere_or_breaks_out_of_the_data(project: Path) -> None:
    text = REPORT.read_text(encoding="utf-8")
    parser = Scripts()
    parser.feed(text)
    assert parser.tags.count("script") == 2 and "img" not in parser.tags
    assert text.count("\\u003c/script>\\u003cimg") >= 1 and "<img src=x" not in text
    addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "this one is a name, and is not asked for"


def test_numbers_that_json_lacks_are_left_out() -> None:
    assert '{"loss":null,"more":[1.5,null]}' in page({"loss": float("nan"), "more": [1.5, float("inf")]})


def test_an_optional_result_is_left_out_if_it_is_missing(project: Path) -> None:
    for path in ("results/depth.png", "results/samples.txt", "results/baselines/xz.json"):
        Path(path).unlink()
    shutil.rmtree("runs")
    write_report()
    (run,) = of_page(REPORT)["runs"]
    assert run["depth"] == run["samples"] == [] and run["health"] is None
    assert len(run["baselines"]) == 2 and run["lens"]


def test_without_its_text_a_run_has_no_lens(project: Path) -> None:
    shutil.rmtree("data")
    (run,) = report_of([published_run()], load_params())["runs"]
    assert run["lens"] is None and run["baselines"] == [] and run["figures"]["val_loss"] > 0


def test_runs_of_the_folder_have_the_same_figures(project: Path) -> None:
    published = published_run()
    params = load_params()
    folder = find_run(published.key[:5])
    assert folder is not None and folder.name == published.key
    one, stored = report_of([published, stored_run("mine", folder)], params)["runs"]
    assert stored["name"] == "mine" and one["lens"] == stored["lens"]
    for name in ("figures", "training", "validation", "baselines", "parameters", "health", "written"):
        assert one[name] == stored[name], name


def test_the_published_run_has_what_results_know_of_it(project: Path) -> None:
    folder = find_run("")
    assert folder is not None
    (run,) = report_of([named_run("mine", folder)], load_params())["runs"]
    assert run["name"] == "mine" and run["stopping"] and "val_bpb" in run["depth"][0]
    other = folder.rename(folder.with_name("other"))
    assert named_run("mine", other).stopping == []


def test_an_unfinished_run_shows_its_last_figures(project: Path) -> None:
    folder = find_run("")
    assert folder is not None
    shutil.rmtree(folder / "finished")
    (run,) = report_of([stored_run("mine", folder)], load_params())["runs"]
    log = read_log(folder / "log.csv")
    assert not run["finished"] and run["figures"]["steps"] == log[-1]["step"]
    assert run["figures"]["val_loss"] == [row["val_loss"] for row in log if "val_loss" in row][-1]


def test_bits_per_byte_of_an_unfinished_run_compare_with_the_baselines(project: Path) -> None:
    folder = find_run("")
    assert folder is not None
    (whole,) = report_of([stored_run("mine", folder)], load_params())["runs"]
    shutil.rmtree(folder / "finished")
    (run,) = report_of([stored_run("mine", folder)], load_params())["runs"]
    assert run["per_byte"] == pytest.approx(whole["per_byte"], rel=0.02)
    assert run["figures"]["val_bpb"] == pytest.approx(run["figures"]["val_loss"] / run["per_byte"])


def test_what_is_no_run_is_refused(project: Path) -> None:
    folder = find_run("")
    assert folder is not None
    shutil.copytree(folder, folder.with_name(f"{folder.name[:4]}-other"))
    with pytest.raises(UserError, match="2 runs start with it"):
        find_run(folder.name[:4])
    assert find_run(folder.name) == folder and find_run("nowhere") is None
    write_text(folder / "log.csv", "step\n")
    with pytest.raises(UserError, match="a run without logs"):
        stored_run("mine", folder)


def test_the_health_of_a_long_run_is_thinned(tmp_path: Path) -> None:
    columns = f"step,layer,{','.join(COLUMNS)}\n"
    lines = [f"{step},h.0{',' * (len(COLUMNS) - 1)},{step / 2}\n" for step in range(1000)]
    write_text(tmp_path / "health.csv", columns + "".join(lines))
    found = _health(tmp_path / "health.csv")
    assert found is not None
    points = found[COLUMNS[-1]]["h.0"]
    assert len(points) == MOST_POINTS and points[0] == [0, 0] and points[-1] == [999, 499.5]
    assert all(value == step / 2 for step, value in points)
    write_text(tmp_path / "health.csv", columns + lines[0].replace("0.0", "none"))
    assert _health(tmp_path / "health.csv") is None


def test_a_long_curve_is_averaged() -> None:
    rows = [
        {"step": float(step), "tokens": 8.0 * step, "seconds": 0.5, "train_loss": 1.0 + step % 2}
        for step in range(2000)
    ]
    found = _averaged(rows, ("train_loss",))
    assert len(found["step"]) == MOST_ROWS and found["step"][0] == 4 and found["step"][-1] == 1999
    assert found["train_loss"][0] == pytest.approx((1 + 2 + 1 + 2 + 1) / 5)
    few = _averaged(rows[:3], ("train_loss",))
    assert few["train_loss"] == [1.0, 2.0, 1.0]
