"""Text comes out whole, up to the first stop sequence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.serve.batch import Token
from pipeline.tokens.tokenizers import ByteTokenizer
from pipeline.web.writing import Piece, Writer, pieces_of

TOKENIZER = ByteTokenizer(end_of_text=True)
TEXT = st.text("abé€", max_size=12)


def written(ids: list[int], stops: list[str], max_tokens: int) -> tuple[list[Piece], str | None]:
    writer = Writer(TOKENIZER, stops, max_tokens)
    pieces: list[Piece] = []
    for id in ids:
        pieces += writer.take(Token(id, None, ()))
        if writer.finish_reason:
            break
    return pieces, writer.finish_reason


@given(TEXT, st.lists(st.text("abé€", min_size=1, max_size=3), max_size=4))
def test_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    ids = TOKENIZER.encode(text).tolist()
    pieces, reason = written([*ids, 256], stops, 1000)
    # The stop that ends first wins; of several that end there, the one that begins first.
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    end = min(found)[0] if found else len(text)
    expected = min((text[:end].find(stop) for stop in stops if stop in text[:end]), default=len(text))
    assert "".join(piece.text for piece in pieces) == text[:expected]
    assert reason == "stop"
    if not found:
        assert [piece.token.id for piece in pieces] == ids


@given(TEXT, st.integers(1, 12))
def test_up_to_the_number_of_tokens(text: str, max_tokens: int) -> None:
    ids = TOKENIZER.encode(text).tolist()
    pieces, reason = written(ids, ["zzz"], max_tokens)
    assert reason == ("length" if len(ids) >= max_tokens else None)
    expected = bytes(ids[:max_tokens]).decode(errors="replace" if reason else "ignore")
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces == pieces_of(TOKENIZER, [Token(id, None, ()) for id in ids[:max_tokens]]) or reason is None


def test_what_may_become_a_stop_is_held_back() -> None:
    writer = Writer(TOKENIZER, ["abc"], 100)
    texts = ["".join(piece.text for piece in writer.take(Token(id, None, ()))) for id in b"xabababd"]
    assert texts == ["x", "", "", "ab", "", "ab", "", "abd"]
