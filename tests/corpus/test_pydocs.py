"""The embedded corpus, from the running interpreter and from a library of three files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.corpus.pydocs import documents, modules
from pipeline.corpus.sources import load_spec, write_raw
from pipeline.tokens.shards import SplitName, open_split, open_tokenizer
from pipeline.tokens.write_shards import tokenize
from tests import tiny


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
    names = [name for joined in texts for name in joined.split(" + ")]
    (json,) = (text for name, text in texts.items() if "json.decoder" in name.split(" + "))
    assert "class JSONDecoder(object)\n    Simple JSON <https://json.org> decoder\n" in json
    assert not any(name.startswith(("test.", "idlelib")) or "site-packages" in name for name in names)


def test_the_demos_splits_share_no_passage_of_100_characters(tmp_path: Path) -> None:
    spec = load_spec("pydocs", tiny.ROOT / "data")
    write_raw(spec, tmp_path / "raw")
    tokenize(tmp_path / "raw", spec.split, "byte", 257, 10**8, tmp_path / "byte")
    tokenizer = open_tokenizer(tmp_path / "byte")

    def split_text(name: SplitName) -> str:
        tokens = open_split(tmp_path / "byte", name)
        return tokenizer.decode(tokens.read(0, len(tokens)).tolist())

    train, val = split_text("train"), split_text("val")
    assert len(val) > 100_000

    for pattern in (r"$^", r"\s+", r"[\W_]+"):  # as it is, without line breaks, words alone
        train_form, val_form = (re.sub(pattern, " ", text) for text in (train, val))
        in_val = {hash(val_form[start : start + 100]) for start in range(len(val_form) - 99)}
        assert not any(
            hash(train_form[start : start + 100]) in in_val for start in range(len(train_form) - 99)
        )


def test_the_source_code_of_modules(stdlib: Path) -> None:
    (stdlib / "alone.py").write_text("x = 1\n\n")
    shared = "# " + "the same long line of comment in two modules, " * 3
    (stdlib / "one.py").write_text(f"{shared}\nOne = 1\n")
    (stdlib / "package").mkdir()
    (stdlib / "package" / "__init__.py").write_text(f"{shared}\nTwo = 2\n")
    (stdlib / "package" / "latin.py").write_bytes(b"# caf\xe9\n")
    (stdlib / "test").mkdir()
    (stdlib / "test" / "support.py").write_text("left out\n")
    assert dict(modules(stdlib)) == {
        "alone": "x = 1\n",
        "one + package": f"{shared}\nOne = 1\n\n{shared}\nTwo = 2\n",
    }


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


def test_a_topic_that_is_part_of_another_is_left_out_whatever_underlines_its_headings(stdlib: Path) -> None:
    topics = {
        "compound": "Compound\n********\n\nThe if statement\n================\n\nIt chooses.\n\nMore",
        "if": "The if statement\n****************\n\nIt chooses.\n",
        "x": "Else",
    }
    (stdlib / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}")
    (stdlib / "shapes.py").write_text("'''Shapes.'''")
    assert [name for name, _ in documents(stdlib)] == ["topic compound", "topic x", "shapes"]


def test_documents_that_share_a_passage_are_joined(stdlib: Path) -> None:
    def words(first: int, count: int) -> str:
        return " ".join(str(number) for number in range(first, first + count))  # of four digits

    shared, almost = words(1000, 20), words(2000, 20)[:98]  # 99 and 98 characters
    other_markup = shared.replace(" ", "\n  ** ")
    modules = {
        "a": f"A {shared} a",  # " 1000 ... 1019 " are 101 characters
        "b": f"B {almost}x",
        "c": f"C\n\n{other_markup} c {words(3000, 25)}",
        "d": f"D {almost}y",
        "e": f"E {words(3000, 25)}",  # has nothing in common with a
    }
    for name, text in modules.items():
        (stdlib / f"{name}.py").write_text(f"'''{text}'''")
    found = dict(documents(stdlib))
    assert list(found) == ["topic if", "a + c + e", "b", "d"]
    assert found["a + c + e"] == "\n".join(f"{name}\n=\n\n{modules[name]}\n" for name in ("a", "c", "e"))
