"""The embedded corpus, from the running interpreter and from a library of three files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.corpus.pydocs import documents


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    """A standard library of one topic."""
    topics = tmp_path / "pydoc_data" / "topics.py"
    topics.parent.mkdir()
    topics.write_text("topics = {'if': '\\nThe \"if\" statement\\n'}\n")
    return tmp_path


def test_the_interpreters_own_documentation() -> None:
    found = list(documents())
    texts = dict(found)
    assert len(texts) == len(found) > 300
    assert 1_500_000 < sum(map(len, texts.values())) < 4_000_000
    assert texts["topic assert"].startswith('The "assert" statement\n****')
    assert "class JSONDecoder(object)\n    Simple JSON <https://json.org> decoder\n" in texts["json.decoder"]
    assert not any(name.startswith(("test.", "idlelib")) or "site-packages" in name for name in texts)


def test_layout_of_a_module(stdlib: Path) -> None:
    (stdlib / "shapes.py").write_text(
        '"""Shapes.\n\n    And more.\n    """\n'
        "if True:\n"
        "    class Square(Shape, metaclass=M):\n"
        '        """A square."""\n'
        "        def area(self, *, unit: str = 'm') -> float:\n"
        '            """Its area.\n\n            In metres.\n            """\n'
        "            def helper():\n"
        '                """Not documentation."""\n'
        "    async def draw(): 'Draw it.'\n"
        "def undocumented(): pass\n"
    )
    assert dict(documents(stdlib))["shapes"] == (
        "shapes\n======\n\n"
        "Shapes.\n\nAnd more.\n\n"
        "class Square(Shape)\n    A square.\n\n"
        "Square.area(self, *, unit: str='m') -> float\n    Its area.\n\n    In metres.\n\n"
        "draw()\n    Draw it.\n"
    )


def test_odd_files_are_left_out_and_the_rest_is_sorted(stdlib: Path) -> None:
    for name in ("b.py", "a/__init__.py", "a/c.py", "site-packages/x.py", "test/x.py", "idlelib/x.py"):
        (stdlib / name).parent.mkdir(exist_ok=True)
        (stdlib / name).write_text(f'"""Text of {name}"""')
    (stdlib / "syntax.py").write_text("def")
    (stdlib / "null.py").write_bytes(b'"""x"""\x00')
    (stdlib / "latin.py").write_bytes(b'"""\xe9"""')
    (stdlib / "empty.py").touch()
    (stdlib / "folder.py").mkdir()
    (stdlib / "surrogate.py").write_text('"""a\\ud800b"""')
    assert [name for name, _ in documents(stdlib)] == ["topic if", "a", "a.c", "b", "surrogate"]
    assert "a?b" in dict(documents(stdlib))["surrogate"]


def test_an_interpreter_without_documentation_is_an_error(
    stdlib: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(UserError, match="no standard library sources"):
        list(documents(stdlib))
    with pytest.raises(UserError, match="no language reference"):
        list(documents(tmp_path_factory.mktemp("bare")))


def test_a_topic_that_is_part_of_another_is_left_out(stdlib: Path) -> None:
    topics = {"compound": "Compound\n\nThe if statement\n\nMore", "if": "The if statement\n", "x": "Else"}
    (stdlib / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}")
    (stdlib / "shapes.py").write_text("'''Shapes.'''")
    assert [name for name, _ in documents(stdlib)] == ["topic compound", "topic x", "shapes"]
