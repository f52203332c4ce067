"""A user's own text, from the command to raw/."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.documents import read_pieces
from pipeline.data.sources import load_spec, write_spec
from pipeline.errors import UserError
from pipeline.params import load_params
from stages import download, new_dataset

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the default parameters and the dataset pydocs."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((PROJECT / "presets" / "default.yaml").read_bytes())
    write_spec(load_spec("pydocs", PROJECT / "data"), Path("data/pydocs/dataset.yaml"))
    return tmp_path


def test_own_text_becomes_the_active_dataset(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("params.yaml").read_text().splitlines()
    Path("my book.txt").write_text("Call me Ishmael.\n")
    new_dataset.main("my book.txt")
    assert load_params().data.dataset == "my-book"
    changed = [line for line in Path("params.yaml").read_text().splitlines() if line not in before]
    assert len(changed) == 1
    assert changed[0].startswith("  dataset: my-book ")
    download.main()
    assert [piece.text for piece in read_pieces(Path("data/my-book/raw"))] == ["Call me Ishmael.\n"]
    said = capsys.readouterr().out
    assert "data/my-book/dataset.yaml" in said
    assert "data/my-book/raw: 1 documents" in said


def test_own_text_does_not_take_another_datasets_place(project: Path) -> None:
    Path("pydocs.txt").write_text("text")
    before = Path("data/pydocs/dataset.yaml").read_text()
    with pytest.raises(UserError, match="another dataset's"):
        new_dataset.main("pydocs.txt")
    assert Path("data/pydocs/dataset.yaml").read_text() == before
