"""Text and tokens travel through a DVC remote, and nobody tokenizes them again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.storage.checksums import sha256_file
from pipeline.storage.machine import Room
from tests.conftest import Ended
from tests.stages.test_dvc import command, dvc, new_project, ran
from tests.train.runs import flip_a_bit

pytestmark = pytest.mark.xdist_group("dvc")


def content(project: Path) -> dict[str, str]:
    """The hash of each file of the dataset."""
    files = [path for path in sorted((project / "data/tiny").rglob("*")) if path.is_file()]
    return {str(path.relative_to(project)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that made text and tokens, and sent them to the folder `shared` beside it."""
    project = tmp_path_factory.mktemp("made") / "maker"
    new_project(project)
    late = command(project, "push-data", "--remote", "../shared")
    assert late.returncode == 2 and "nothing to push: no stage has run" in late.stderr
    assert dvc(project, "repro", "tokenize").returncode == 0
    sent = command(project, "push-data", "--remote", "../shared")
    assert sent.returncode == 0, sent.stderr
    assert "data/tiny/raw and data/tiny/char, " in sent.stdout and " new files sent" in sent.stdout
    return project


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Another copy of the project, without the text."""
    project = tmp_path / "user"
    new_project(project)
    (project / "text/tiny.txt").unlink()
    return project


def test_what_was_pulled_is_not_made_again(maker: Path, user: Path) -> None:
    pulled = command(user, "pull-data", "--remote", str(maker.parent / "shared"))
    assert (pulled.returncode, pulled.stderr) == (0, "")
    assert content(user) == content(maker)
    assert ran(dvc(user, "repro", "train")) == ["check", "check_tokens", "train"]


def test_a_remote_gets_what_the_two_stages_wrote_and_nothing_else(maker: Path) -> None:
    assert dvc(maker, "repro", "train").returncode == 0
    again = command(maker, "push-data", "--remote", "../shared")
    assert again.returncode == 0 and ": 0 new files sent" in again.stdout
    shared = maker.parent / "shared"
    assert len(list(shared.glob("runs/*/*/*"))) == 2
    hashes = {path.parent.name + path.name for path in shared.glob("files/md5/*/*")}
    lists = {name for name in hashes if name.endswith(".dir")}
    assert len(lists) == 2 and len(hashes - lists) == len(set(content(maker).values())) - 1  # dataset.yaml


def test_the_default_remote_of_dvc_is_used_and_a_lock_from_git_is_enough(maker: Path, user: Path) -> None:
    shutil.copy(maker / "dvc.lock", user)
    shutil.copytree(maker.parent / "shared/files", user.parent / "only-files/files")
    assert dvc(user, "remote", "add", "--default", "ours", "../only-files").returncode == 0
    assert command(user, "pull-data").returncode == 0
    assert content(user) == content(maker)
    wrong = command(user, "pull-data", "--remote", "our")
    assert wrong.returncode == 2 and "did you mean ours?" in wrong.stderr


def test_a_remote_without_this_data_is_refused(maker: Path, user: Path) -> None:
    params = user / "params.yaml"
    params.write_text(params.read_text().replace("shard_tokens: ", "shard_tokens: 9  # "))
    for remote, missing in (("../nowhere", "raw"), (str(maker.parent / "shared"), "char")):
        refused = command(user, "pull-data", "--remote", remote)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert f"the remote has no data/tiny/{missing} of these parameters" in refused.stderr


def test_tokens_that_are_out_of_date_are_not_pushed(user: Path) -> None:
    shutil.copy(user / "data/tiny/dataset.yaml", user / "dvc.lock")
    (user / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    refused = command(user, "push-data", "--remote", "../nowhere")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "nothing to push: download, tokenize has to run first" in refused.stderr
    assert not (user.parent / "nowhere").exists()


def test_damage_on_the_remote_is_found_and_mended(maker: Path, user: Path) -> None:
    shared = user.parent / "shared"
    shutil.copytree(maker.parent / "shared", shared)
    for path in shared.glob("files/md5/*/*"):
        if not path.name.endswith(".dir"):
            path.chmod(0o644)
            flip_a_bit(path)
    refused = command(user, "pull-data", "--remote", "../shared")
    assert refused.returncode == 2 and "a damaged data/tiny/raw" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (user / "data/tiny/raw").exists()
    shutil.rmtree(shared / "files")
    assert command(maker, "push-data", "--remote", str(shared)).returncode == 0
    assert command(user, "pull-data", "--remote", "../shared").returncode == 0
    assert content(user) == content(maker)


def test_a_disk_that_is_too_small_is_refused_before_anything_comes(
    maker: Path, user: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(user)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(10**9, 1000))
    refused = stage("pull_data", "--remote", str(maker.parent / "shared"))
    assert refused.status == 2 and refused.err.count("\n") == 1
    assert "the files of data/tiny/raw need 2." in refused.err
    assert not (user / "data/tiny/raw").exists() and not list(user.glob(".dvc/cache/files/md5/*/*"))


def test_text_of_ones_own_in_the_way_is_kept(maker: Path, user: Path) -> None:
    raw = user / "data/tiny/raw/mine.txt"
    raw.parent.mkdir()
    raw.write_text("mine")
    refused = command(user, "pull-data", "--remote", str(maker.parent / "shared"))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "data/tiny/raw" in refused.stderr and raw.read_text() == "mine"


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/data", "dvc-s3"), ("ssh://host/data", "dvc-ssh")])
def test_a_kind_of_remote_that_is_not_installed_names_its_package(user: Path, url: str, package: str) -> None:
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    refused = command(user, "pull-data", "--remote", url)
    assert refused.returncode == 2 and refused.stderr.endswith(f"; run `pip install {package}`\n")
    assert refused.stderr.count("\n") == 1
