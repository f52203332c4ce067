"""The pictures of the documentation: each is made by a command, shown in the gallery, and wide enough."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import pictures
from bench.pictures import IMAGES, PICTURES
from pipeline.config.presets import DEFAULT
from tests import tiny
from tests.conftest import Ended

COMMITTED = sorted((tiny.ROOT / IMAGES).glob("*.png"))


def test_each_picture_has_a_maker_and_a_place_in_the_gallery() -> None:
    committed = [picture.stem for picture in COMMITTED]
    assert committed and set(committed) <= set(PICTURES)
    gallery = (tiny.ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[([^\]]+)\]\(images/([\w-]+)\.png\)", gallery)
    assert sorted(name for _, name in shown) == committed
    assert all(len(text) > 20 for text, _ in shown), "a text for those who do not see it"


@pytest.mark.parametrize("picture", COMMITTED, ids=lambda path: path.stem)
def test_pictures_are_png_of_a_width_that_a_page_shows_whole(picture: Path) -> None:
    content = picture.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG") and 800 <= width <= 2400 and 500 <= height <= 2400
    assert len(content) < 400_000


def test_pictures_are_made_in_a_copy_under_the_default_preset(
    tiny_project: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_project / "presets").symlink_to(tiny.ROOT / "presets")
    (tiny_project / IMAGES).mkdir(parents=True)
    before = Path("params.yaml").read_text()

    def one(folder: Path) -> Path:
        assert folder.resolve() != tiny_project and (folder / "runs").resolve() == tiny_project / "runs"
        assert (folder / "params.yaml").read_text() == tiny.params_yaml(DEFAULT)
        (folder / "one.png").write_text("new")
        return folder / "one.png"

    monkeypatch.setattr(pictures, "PICTURES", {"one": one, "two": lambda folder: folder / "none.png"})
    (tiny_project / IMAGES / "two.png").write_text("old")
    ended = stage("bench.pictures")
    assert ended.status == 0
    assert "one.png: made" in ended.err and "two.png: left as it is" in ended.err
    assert [(tiny_project / IMAGES / f"{name}.png").read_text() for name in ("one", "two")] == ["new", "old"]
    assert Path("params.yaml").read_text() == before
    ended = stage("bench.pictures", "--only", "onne")
    assert ended.status == 2 and ended.err.startswith(
        "error: --only onne: not one of one, two; did you mean one?"
    )
