"""Reading a corpus: exact text, bounded pieces, errors that say where."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.documents import (
    Piece,
    corpus_files,
    corpus_parts,
    count_documents,
    fingerprint,
    read_part,
    read_pieces,
)
from pipeline.tokens.tokenizers import train_bpe

BPE = train_bpe(["ab ab\n\nab  ab'é1. .a b\n.b " * 9], 300)
ODD = "naïve\r\nline two\n\n  \tétude 😀\u2028end\r"


def write_parquet(path: Path, **columns: list[object]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two documents in a .txt and a .jsonl, three in a .parquet."""
    (tmp_path / "a.txt").write_bytes(ODD.encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"name": "x", "text": ODD}) + "\n\n", encoding="utf-8")
    write_parquet(tmp_path / "c.parquet", id=[1, 2, 3], text=["one", "", ODD])
    (tmp_path / "notes.md").write_text("not part of the corpus")
    return tmp_path


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 20, 64, 100, 1 << 20])
def test_the_parts_of_a_corpus_are_the_whole(raw: Path, part_bytes: int) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("", ODD, "é", "last")]
    (raw / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    rows = pyarrow.table({"text": [str(number) for number in range(7)]})
    pyarrow.parquet.write_table(rows, raw / "e.parquet", row_group_size=2)
    parts = corpus_parts(raw, part_bytes)
    whole = [(piece.text, piece.last) for piece in read_pieces(raw)]
    assert [piece for part in parts for piece in read_part(part)] == whole
    assert part_bytes < 1000 or len(parts) == 1


def test_an_error_in_a_part_says_where_it_is_in_the_file(raw: Path) -> None:
    (raw / "b.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    rows = pyarrow.table({"text": ["a", "b", None]})
    pyarrow.parquet.write_table(rows, raw / "c.parquet", row_group_size=1)
    places = []
    for part in corpus_parts(raw, 5):
        try:
            list(read_part(part))
        except UserError as error:
            places.append(str(error).partition(":")[0].rpartition("/")[2])
    assert places == ["b.jsonl byte 14", "c.parquet row 3"]


@pytest.mark.parametrize("piece_chars", [1, 2, 7, 1 << 24])
def test_text_is_exact_whatever_the_size_of_the_pieces(raw: Path, piece_chars: int) -> None:
    documents = ["" for _ in range(5)]
    pieces = list(read_pieces(raw, piece_chars))
    for piece in pieces:
        documents[piece.document] += piece.text
        assert len(piece.text) <= piece_chars
    assert documents == [ODD, ODD, "one", "", ODD]
    assert [piece.document for piece in pieces if piece.last] == [0, 1, 2, 3, 4]
    assert count_documents(raw) == 5
    assert sum(len(piece.text) for piece in pieces) == 3 * len(ODD) + 3


def test_long_text_is_cut_before_a_newline(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc\ndef\nghijklmnopq")
    assert list(read_pieces(tmp_path, piece_chars=6)) == [
        Piece(0, "abc", False),
        Piece(0, "\ndef", False),
        Piece(0, "\nghijk", False),
        Piece(0, "lmnopq", True),
    ]


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xef\xbb\xbfb")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "c"}\n')
    assert [piece.text for piece in read_pieces(tmp_path)] == ["a\ufeffb", "c"]
    assert count_documents(tmp_path) == 2


@pytest.mark.parametrize("piece_chars", [1, 3, 1 << 24])
@pytest.mark.parametrize(
    ("content", "offset"),
    [(b"\xef\xbb\xbfab\xffcd", 5), ("éé".encode() + b"\xe9t\xe9", 4), (b"ends in half: \xc3", 14)],
)
def test_what_is_not_utf8_is_found_to_the_byte(
    tmp_path: Path, content: bytes, offset: int, piece_chars: int
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"a.txt: not UTF-8 at byte {offset};"):
        list(read_pieces(tmp_path, piece_chars))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "b"', "line 2: not JSON"),
        (b'{"body": "b"}', "line 2: no text in 'text'"),
        (b'{"text": 5}', "line 2: no text in 'text'"),
        (b'["b"]', "line 2: no object; put one object on each line"),
        (b'{"text": "\\ud800"}', "line 2: lone surrogate at character 0"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 24;"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message) as error:
        list(read_pieces(tmp_path))
    assert str(tmp_path / "a.jsonl") in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, text=["a", None])
    with pytest.raises(UserError, match=r"a.parquet row 2: no text in 'text'"):
        list(read_pieces(tmp_path))
    write_parquet(path, body=["a"])
    with pytest.raises(UserError, match=r"a.parquet: no column 'text', only body"):
        list(read_pieces(tmp_path))
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"a.parquet: not a Parquet file"):
        count_documents(tmp_path)


def test_a_corpus_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no .txt, .jsonl, .parquet files"):
        list(read_pieces(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="all documents are empty"):
        list(read_pieces(tmp_path))
    (tmp_path / "b.txt").touch()
    with pytest.raises(UserError, match=r"b.txt: empty file"):
        list(read_pieces(tmp_path))


def test_fingerprint_is_of_names_and_contents_only(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.txt").write_text("a")
    (two / "notes.md").write_text("ignored")
    assert fingerprint(corpus_files(one)) == fingerprint(corpus_files(two))
    (two / "a.txt").write_text("b")
    assert fingerprint(corpus_files(one)) != fingerprint(corpus_files(two))
    (two / "a.txt").rename(two / "b.txt")
    (two / "b.txt").write_text("a")
    assert fingerprint(corpus_files(one)) != fingerprint(corpus_files(two))


@given(
    st.lists(
        st.tuples(st.text("ab'é1.", max_size=5), st.sampled_from([" ", "\n", "  ", "\n\n", " \n", "\t"]))
    ),
    st.integers(12, 30),
)
def test_the_pieces_of_a_text_have_the_tokens_of_the_whole(
    words: list[tuple[str, str]], piece_chars: int
) -> None:
    text = "".join(word + space + "." for word, space in words) + "end"
    with TemporaryDirectory() as folder:
        (Path(folder) / "a.txt").write_text(text, newline="")
        pieces = [piece.text for piece in read_pieces(Path(folder), piece_chars)]
    assert "".join(pieces) == text
    for left, right in pairwise(pieces):  # what has no such place is cut elsewhere
        assume(not left[-1].isspace() and right[0] in " \n" and not right[1:2].isspace())
    assert [i for piece in pieces for i in BPE.encode(piece)] == BPE.encode(text).tolist()
