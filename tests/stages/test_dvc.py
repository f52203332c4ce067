"""The pipeline under DVC: what runs again after which change, and what is never lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.config.command_line import FROM_MAKE
from pipeline.config.presets import overlay
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_text
from tests import tiny
from tests.stages.test_dvc_yaml import CACHED, STAGES
from tests.train.runs import flip_a_bit

pytestmark = pytest.mark.xdist_group("dvc")  # one process makes the project that all of them look at

BASELINES = ["unigram", "saved/other"]
NEEDS_DOWNLOADS = "stages/dvc.yaml:"


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC as a user would, after `source .venv/bin/activate`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `gpt-pipeline` in a shell that knows only these variables, without network."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    environment |= variables
    program = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def ran(repro: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that DVC ran."""
    lines = repro.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def stale(folder: Path) -> set[str]:
    """The stages that DVC would run, by name, without those that never ran or always run."""
    status = json.loads(dvc(folder, "status", "--json").stdout)
    return {name for name in status if name != "check" and not name.startswith(NEEDS_DOWNLOADS)}


def new_project(folder: Path) -> dict[str, dict[str, Any]]:
    """Copy this project to `folder`, outside of git, with the tiny corpus. Returns its parameters."""
    for name in ("pipeline", "stages", "presets"):
        shutil.copytree(tiny.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny.ROOT / name, folder / name)
    write_text(folder / ".dvc/config.local", "[core]\n    no_scm = true\n")
    values = tiny.params("train.max_iters=2", "depth.eval_iters=2").model_dump()
    values["baselines"] |= {"models": ["unigram"], "pretrained": ["gpt2"]}
    write_text(folder / "params.yaml", overlay(tiny.params_yaml("nanogpt"), values))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        write_text(Path("text/tiny.txt"), tiny.text())
        write_spec(spec_for_text("text/tiny.txt"), Path("data/tiny/dataset.yaml"))
    return values


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this project whose pipeline ran on the tiny corpus."""
    folder = tmp_path_factory.mktemp("project")
    values = new_project(folder)
    # A model to compare with: what the pipeline itself makes first.
    assert dvc(folder, "repro", "train").returncode == 0
    shutil.copytree(folder / "results/model", folder / "saved/other", copy_function=shutil.copyfile)
    values["baselines"]["models"] = BASELINES
    write_text(folder / "params.yaml", overlay(tiny.params_yaml("nanogpt"), values))
    first = dvc(folder, "repro")
    assert first.returncode == 0, first.stdout + first.stderr
    yield folder


def test_a_second_run_runs_nothing_but_the_check(project: Path) -> None:
    again = dvc(project, "repro")
    assert again.returncode == 0 and ran(again) == ["check"]
    assert stale(project) == set()


def test_bad_parameters_are_refused_before_any_output_is_removed(project: Path) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    alone, with_tokens = ["check"], ["check", "check_tokens"]
    results = {path for path in (project / "results").rglob("*") if path.is_file()}
    for wrong, by in (
        (before.replace("max_iters: 2", "max_iters: two"), alone),
        (before.replace("dataset: tiny", "dataset: tinny"), alone),
        (before.replace("init_from: scratch", "init_from: nowhere"), alone),
        (before.replace("init_from: scratch", "init_from: results/model"), alone),
        (before.replace("- saved/other", "- saved/nothing"), alone),
        (before.replace("  device: ", "  device: cuda:99  # "), alone),
        (before.replace("  start: ", "  start: FILE:nothing.txt  # "), alone),
        (before.replace("  start: ", "  start: \u4e2d  # "), with_tokens),
        (before.replace("  block_size: ", "  block_size: 4000000  # "), with_tokens),
    ):
        assert wrong != before
        params.write_text(wrong)
        refused = dvc(project, "repro")
        assert refused.returncode != 0 and ran(refused) == by
        assert len([line for line in refused.stderr.splitlines() if line.startswith("error: ")]) == 1
        left = {path for path in (project / "results").rglob("*") if path.is_file()}
        assert {
            path
            for path in results - left
            if "checked" not in path.parts and path.name != "checked-tokens.json"
        } == set()
    params.write_text(before)
    assert ran(dvc(project, "repro")) == ["check"]


ROOMS = sorted(path.parent.name for path in (tiny.ROOT / "pipeline").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_change_in_a_room_makes_exactly_the_stages_stale_that_reach_it(project: Path, room: str) -> None:
    reaching = {name.partition(":")[2] for name in CACHED if f"pipeline/{room}" in STAGES[name]["deps"]}
    in_pipeline = {name.partition(":")[2] for name in CACHED if name.startswith("dvc.yaml:")}
    module = project / "pipeline" / room / "__init__.py"
    before = module.read_text()
    try:
        module.write_text(before + "# changed\n")
        changed = {name.partition("@")[0] for name in stale(project)}
    finally:
        module.write_text(before)
    assert changed == reaching & in_pipeline


def test_other_weights_in_the_same_folder_are_noticed(project: Path) -> None:
    weights = project / "saved/other/model.safetensors"
    before = weights.read_bytes()
    (weights.parent / "manifest.json").unlink()  # else it is refused, as damaged
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    try:
        assert ran(dvc(project, "repro")) == ["check", "eval_baselines@saved/other", "depth_curve", "report"]
    finally:
        weights.write_bytes(before)
    again = dvc(project, "repro")  # the figures of these weights are in the run cache
    assert ran(again) == ["check"] and again.returncode == 0
    assert ran(dvc(project, "repro")) == ["check"]


def test_a_flipped_bit_is_mended_by_what_verify_says(project: Path) -> None:
    """A result is a link into DVC's cache, where the bad content would be found again."""
    assert command(project, "verify").returncode == 0
    for path, stage in (
        ("data/tiny/char/train-00000.bin", "tokenize"),
        ("results/model/config.json", "train"),
    ):
        times = (project / path).stat()
        flip_a_bit(project / path)
        os.utime(project / path, ns=(times.st_atime_ns, times.st_mtime_ns))
        ended = command(project, "verify")
        assert ended.returncode == 2 and f"it was {path}; set aside" in ended.stdout
        assert f"{path}: not what" in ended.stdout and f"`dvc repro -f -s {stage}`" in ended.stdout
        assert dvc(project, "repro", "-f", "-s", stage).returncode == 0
        ended = command(project, "verify")
        assert ended.returncode == 0, ended.stdout
    assert ran(dvc(project, "repro")) == ["check"]


def test_repro_ends_with_the_summary(project: Path) -> None:
    ended = command(project, "repro")
    assert ended.returncode == 0, ended.stderr
    assert "Validation loss of tiny" in ended.stdout and "results/depth.png" in ended.stdout


def test_the_report_is_made_again_alone(project: Path) -> None:
    page = project / "results/report.html"
    before = page.read_bytes()
    ended = command(project, "report")
    assert ended.returncode == 0 and ended.stdout == "results/report.html: open it in a browser\n"
    assert page.read_bytes() == before, "the same results give the same page"
    assert ran(dvc(project, "repro")) == ["check"]


def test_variables_of_make_do_not_reach_the_stages(project: Path) -> None:
    """They are options of one command; DVC would record what they changed as if the parameters said so."""
    params, samples = project / "params.yaml", project / "results/samples.txt"
    before = params.read_text()
    params.write_text(before.replace("\n  top_k: ", "\n  top_k: 3  # "))
    variables = {FROM_MAKE: "1", "START": "HELLO", "MODEL": "saved/other", "OUT": "elsewhere.txt"}
    try:
        ended = command(project, "repro", **variables)
        assert ended.returncode == 0 and "sample" in ran(ended), ended.stderr
        written = samples.read_bytes()
        assert dvc(project, "repro", "--force", "--single-item", "sample").returncode == 0
        assert samples.read_bytes() == written and not (project / "elsewhere.txt").exists()
    finally:
        params.write_text(before)
        dvc(project, "repro")


def test_what_cannot_be_had_and_what_is_out_of_date_is_left_out_of_the_table(project: Path) -> None:
    ended = command(project, "baselines")
    assert ended.returncode == 2, "GPT-2 is not there, and there is no network"
    table = ended.stdout[ended.stdout.index("| model") :]
    assert "unigram" in table and "saved/other" in table and "this model" in table and "gpt2" not in table
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("n_embd: 16", "n_embd: 32"))
    try:
        ended = command(project, "baselines")
    finally:
        params.write_text(before)
    assert "note: out of date and left out: train" in ended.stderr
    assert "this model" not in ended.stdout and "| unigram" in ended.stdout


def test_what_was_evaluated_once_is_found_in_the_run_cache(project: Path) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("- gpt2\n", "- saved/other\n"))
    try:
        assert command(project, "baselines").returncode == 0
        figures = project / "results/pretrained/saved/other.json"
        written = figures.read_bytes()
        shutil.rmtree(project / "results/pretrained")
        again = command(project, "baselines")
        assert "eval_baselines@saved/other' is cached - skipping run" in again.stdout
        assert figures.read_bytes() == written
    finally:
        params.write_text(before)


@pytest.mark.parametrize(
    "module", ["track/console.py", "report/tables.py", "cli/main.py", "config/presets.py"]
)
def test_code_that_determines_no_step_retrains_nothing(project: Path, module: str) -> None:
    """The stage may be stale; the finished run is published again, and the model stays the same."""
    path, model = project / "pipeline" / module, project / "results/model/model.safetensors"
    before, weights = path.read_text(), sha256_file(model)
    try:
        path.write_text(before + "# changed\n")
        again = dvc(project, "repro", "train")
    finally:
        path.write_text(before)
    assert again.returncode == 0
    assert ("train" in ran(again)) == ("already finished, nothing to train" in again.stderr)
    assert sha256_file(model) == weights
    assert len(list((project / "runs").iterdir())) == 1
    dvc(project, "repro")
