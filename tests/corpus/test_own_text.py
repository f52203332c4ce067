"""The user's own text: which files are read, of which kinds, packed or not, and what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pipeline.config.errors import UserError
from pipeline.corpus.documents import corpus_files, read_pieces
from pipeline.corpus.formats import READERS, find_encoding, is_known
from pipeline.corpus.own_text import dataset_name, files_of, spec_for_text
from pipeline.corpus.sources import DocumentSplit, TailSplit, load_spec, write_raw, write_spec

TEXTS = ["one é\n\nof two lines", 'two, "quoted"\tand more']
PAGE = """<html><head><title>t</title><script>no()</script></head><body>
<nav><a href="/">Home</a></nav>
<main><article><h1>Ships</h1>
<p>The old ship sails over the sea &amp; sinks, while many birds sing above it.</p>
<p>Nobody knows why it sailed so far, and nobody asked the birds about it either.</p>
</article></main></body></html>"""


def texts(raw: Path) -> list[str]:
    return [piece.text for piece in read_pieces(raw)]


def as_table(delimiter: str) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter)
    table.writerows([["id", "text"], *enumerate(TEXTS)])
    return text.getvalue().encode()


def as_parquet() -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), content)
    return content.getvalue()


# {extension: (the content of a file, its documents)}
KINDS: dict[str, tuple[bytes, list[str]]] = {
    **{
        extension: (TEXTS[0].encode(), TEXTS[:1])
        for extension in (".txt", ".md", ".rst", ".tex", ".py", ".rs")
    },
    ".csv": (as_table(","), TEXTS),
    ".tsv": (as_table("\t"), TEXTS),
    ".json": (json.dumps(TEXTS).encode(), TEXTS),
    ".jsonl": (b"\n".join(json.dumps({"text": text}).encode() for text in TEXTS), TEXTS),
    ".parquet": (as_parquet(), TEXTS),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def read_back(text: str, tmp_path: Path, column: str = "text") -> list[str]:
    """The documents of the user's text, after they went through raw/."""
    write_raw(spec_for_text(text, column), tmp_path / "raw")
    return texts(tmp_path / "raw")


@pytest.mark.parametrize("packer", ["", *PACKERS])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_packed_or_not(tmp_path: Path, kind: str, packer: str) -> None:
    content, documents = KINDS[kind]
    path = tmp_path / f"a.X{kind.upper() if not packer else kind}{packer}"
    path.write_bytes(PACKERS[packer](content) if packer else content)
    assert read_back(str(path), tmp_path) == documents


def archive(path: Path, files: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tarred:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tarred.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_archives_are_read_by_name_without_hidden_and_unknown_files(tmp_path: Path, name: str) -> None:
    files = {
        "b/two.txt": b"two",
        "a/one.md.gz": gzip.compress(b"one"),
        "c.png": b"x",
        "a/empty.py": b"",
        ".git/config.txt": b"x",
        "__MACOSX/d.txt": b"x",
        "../../e.jsonl": b'{"text": "out of it"}',
    }
    archive(tmp_path / name, files)
    assert read_back(str(tmp_path / name), tmp_path) == ["one", "two"]
    assert not (tmp_path.parent / "e.jsonl").exists()
    archive(tmp_path / name, {"b/two.txt": b"\xff"})
    with pytest.raises(UserError, match=rf"{name}/b/two.txt: not UTF-8 at byte 0"):
        spec_for_text(str(tmp_path / name))


def test_a_page_is_its_main_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (text,) = read_back(str(tmp_path / "a.html"), tmp_path)
    assert "sails over the sea & sinks" in text and "nobody asked" in text
    assert "no()" not in text and "Home" not in text and "<" not in text


def test_a_folder_is_read_at_any_depth_without_what_is_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/b/d.py", ".hidden.txt", ".git/e.txt", "a/f.png"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert read_back(f"{tmp_path}/texts", tmp_path) == ["a/b/d.py", "a/c.md", "b.txt"]
    names = [path.name for path in files_of(f"{tmp_path}/texts/**/*.{{md,py}}")]
    assert names == ["d.py", "c.md"]
    assert len(files_of(f"{tmp_path}/texts/{{b.txt,a/{{c.md,b/d.py}}}}")) == 3


@pytest.mark.parametrize(
    "name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst", "a.zip", "a.tar", "a.tgz"]
)
def test_damaged_packed_files_are_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"no archive", bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=name) as error:
            spec_for_text(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,body\n1,x\n", "no column 'text', only id, body"),
        ("a.csv", b"", "no column 'text', only none"),
        ("a.csv", b"text\n\xff\n", "not UTF-8 at byte 5"),
        ("a.csv", b"id,text\n1\n", "no row has text in 'text'"),
        ("a.json", b"[" * 99999, "nested too deep"),
        ("a.json", b'[{"body": "x"}]', "no row has text in 'text'"),
        ("a.jsonl", b'{"text": null}\n{"text": 5}', "line 2: no text in 'text'"),
        ("a.csv", b"text\n \n", "no documents"),
        ("a.json", b"{", "not JSON"),
        ("a.html", b"<html></html>", "no documents"),
    ],
)
def test_files_without_the_text_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        spec_for_text(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value) and str(error.value).count(name) == 1


POEM = "Über den Wäldern fährt ein großes Schiff, und die Vögel hören schöne Lieder.\n" * 3


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.zip"])
def test_another_encoding_is_found_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str, name: str
) -> None:
    content = POEM.encode(encoding)
    if name.endswith(".zip"):
        archive(tmp_path / name, {"b.txt": content, "c.txt": b"plain"})
    else:
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    made = spec_for_text(str(tmp_path / name))
    assert "not UTF-8; read as " in capsys.readouterr().err
    write_spec(made, tmp_path / "mine/dataset.yaml")
    assert load_spec("mine", tmp_path) == made
    write_raw(made, tmp_path / "raw")
    assert texts(tmp_path / "raw")[0] == POEM


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("La fenêtre était fermée, où est le café à côté? ", "latin-1"),
        ("The naïve café owner said “hello” — and left. ", "cp1252"),
        ("Der Bär läuft über die Straße und hört den Vögeln zu. ", "latin-1"),
        ("Zażółć gęślą jaźń, stary statek płynie przez szerokie morze. ", "cp1250"),
        ("Старый корабль плывёт по широкому морю, и никто не знает почему. ", "koi8-r"),
        ("老船在宽阔的海面上航行,没有人知道为什么。", "gb18030"),
    ],
)
def test_a_frequent_encoding_is_found(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes((text * 50).encode(encoding))
    found = find_encoding(tmp_path / "a.txt")
    assert found is not None and (text * 50).encode(encoding).decode(found) == text * 50


def test_an_encoding_that_is_named_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\nÄpfel\n".encode("latin-1"))
    with pytest.raises(
        UserError, match="not UTF-8 at byte 5, and its encoding is not clear; .*ENCODING=latin-1"
    ):
        spec_for_text(str(path))
    write_raw(spec_for_text(str(path), encoding="latin-1"), tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["Äpfel"]
    with pytest.raises(UserError, match="a.csv: not ascii"):
        spec_for_text(str(path), encoding="ascii")
    for wrong in ("klingon", "base64", "a\0b"):
        with pytest.raises(UserError, match="ENCODING=.*: no such encoding"):
            spec_for_text(str(path), encoding=wrong)


def test_all_bad_files_are_in_one_line_and_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("a.txt", b"good"), ("b.txt", b"\xff"), ("c.json", b"{"), ("d.jsonl", b"\n")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match="3 of 4 files cannot be read: .*b.txt.*c.json.*d.jsonl.*SKIP_BAD"
    ) as error:
        spec_for_text(str(tmp_path))
    assert "\n" not in str(error.value)
    made = spec_for_text(str(tmp_path), skip_bad=True)
    assert [Path(file.path).name for file in made.source.paths] == ["a.txt"]  # type: ignore[union-attr]
    assert "left out 3 of 4 files: " in capsys.readouterr().err
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="3 of 3 files"):
        spec_for_text(str(tmp_path), skip_bad=True)


def test_how_much_text_there_is_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("nine char")
    (tmp_path / "b.json").write_text('["", "one", "four"]')
    (tmp_path / "c.py").touch()
    spec_for_text(str(tmp_path))
    assert capsys.readouterr().out == (
        "2 files, 3 documents, 16 characters; the shortest document has 3, the longest 9\n"
        "left out 2 empty\n"
        "for validation: the last 2 characters\n"
    )


def test_what_is_empty_or_there_twice_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.distinct.RECENT", 3)  # so that there are hashes in both places
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.md").write_text("one")
    rows = ["two", None, "one", "", "three", "two", " \n", "four", "five", "three"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": [*rows, "six"]}), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text('text\none\n""\n')
    write_raw(spec_for_text(str(tmp_path)), tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["one", "two", "three", "four", "five", "six"]
    assert [path.name for path in corpus_files(tmp_path / "raw")] == [
        "00000-a.txt",
        "00002-c.jsonl",
        "00003-d.parquet",
    ]
    said = capsys.readouterr().out
    assert "5 files, 6 documents, 22 characters; the shortest document has 3, the longest 5\n" in said
    assert said.count("left out 7 empty and 12 the same as an earlier one\n") == 2


def test_paths_in_the_project_are_relative_and_found_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project/texts").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("texts/a.txt").write_text("one")
    made = spec_for_text("texts")
    assert [file.path for file in made.source.paths] == ["texts/a.txt"]  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    write_raw(made, Path("raw"))
    assert texts(Path("raw")) == ["one"]


def test_every_reader_has_a_kind() -> None:
    assert all(is_known(f"a{extension}") for extension in (*READERS, *KINDS))
    assert not is_known("a") and not is_known("a.png.gz") and is_known("a.tar.zst")


def test_own_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a b.TXT").write_text("one\n")
    (tmp_path / "b" / "c.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["four"]}), tmp_path / "b" / "c.parquet")
    made = spec_for_text(f"{tmp_path}/**/*.*")
    write_spec(made, tmp_path / "mine" / "dataset.yaml")
    assert load_spec("mine", tmp_path) == made
    assert made.split == TailSplit(by="tail", fraction=0.1)
    write_raw(made, tmp_path / "raw")
    assert [path.name for path in corpus_files(tmp_path / "raw")] == [
        "00000-a-b.txt",
        "00001-c.jsonl",
        "00002-c.parquet",
    ]
    assert texts(tmp_path / "raw") == ["one\n", "two", "three", "four"]


def test_own_text_column_becomes_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one \\u00e9", "text": 5}\n')
    pyarrow.parquet.write_table(pyarrow.table({"body": ["two", "three"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("four")
    write_raw(spec_for_text(f"{tmp_path}/*", text_column="body"), tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["one é", "two", "three", "four"]


def test_many_documents_are_split_by_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "%d"}\n' * 100 % tuple(range(100)))
    assert spec_for_text(f"{tmp_path}/a.jsonl").split == DocumentSplit(
        by="documents", fraction=0.1, seed=2357
    )


def test_own_files_that_changed_or_went_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    made = spec_for_text(str(path))
    path.write_text("two")
    with pytest.raises(UserError, match=r"a.txt: changed since .*make train-on"):
        write_raw(made, tmp_path / "raw")
    path.unlink()
    with pytest.raises(UserError, match=r"a.txt: no such file.*make train-on"):
        write_raw(made, tmp_path / "raw")


@pytest.mark.parametrize(
    ("name", "content", "pattern", "message"),
    [
        ("a.txt", b"x", "b.txt", "no such file"),
        ("a.bin", b"x", "", "no text in this folder"),
        ("a.png", b"x", "*", "unknown file type .png"),
        ("a.txt", b"", "a.txt", "empty file"),
        ("a.jsonl", b"\n", "a.jsonl", "no documents"),
        ("a.txt", b"ab\xff", "*.txt", "not UTF-8 at byte 2"),
        ("a.jsonl", b'{"body": "x"}', "*", "no row has text in 'text'"),
    ],
)
def test_own_text_that_will_not_do(
    tmp_path: Path, name: str, content: bytes, pattern: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        spec_for_text(f"{tmp_path}/{pattern}")
    assert "\n" not in str(error.value)


def test_home_and_literal_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "act [1].txt").write_text("one")
    made = spec_for_text("~/act [1].txt")
    write_raw(made, tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["one"]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("/books/Jane Austen/emma.v2.txt", "emma.v2"),
        ("/books/Jane Austen/*.txt", "Jane-Austen"),
        ("/books/emma.txt.gz", "emma"),
        ("/books/emma.tar.gz", "emma"),
        ("/books/austen/**/*.jsonl", "austen"),
        ("/books/v1.2/*.txt", "v1.2"),
        ("/books/été.txt", "t"),
        ("/*.txt", "text"),
    ],
)
def test_dataset_name(pattern: str, name: str) -> None:
    assert dataset_name(pattern) == name
