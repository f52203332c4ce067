"""One sequence as it is written: its tokens as pieces of text, up to a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.serve.batch import Token
from pipeline.serve.sampling import TextStream
from pipeline.tokens.tokenizers import Tokenizer


class Piece(NamedTuple):
    """A token and the text that it adds, which is empty while a character is incomplete."""

    token: Token
    text: str


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[Piece]:
    """A whole text as pieces."""
    stream = TextStream(tokenizer)
    pieces = [Piece(token, stream.feed(token.id)) for token in tokens]
    return _with_rest(pieces, stream.finish())


class Writer:
    """Turns tokens into pieces. Holds back those whose text may be the beginning of a stop sequence.

    `finish_reason` is None while the text goes on, then OpenAI's: `stop` after a stop sequence or the
    end-of-text token, or `length` after `max_tokens`.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], max_tokens: int) -> None:
        self._stream = TextStream(tokenizer)
        self._end_of_text = tokenizer.end_of_text
        self._stops = tuple(stops)
        self._left = max_tokens
        self._held: list[Piece] = []
        self.finish_reason: str | None = None

    def take(self, token: Token) -> list[Piece]:
        """The pieces that are certain after one more token."""
        assert self.finish_reason is None
        self._left -= 1
        if token.id == self._end_of_text:
            self.finish_reason = "stop"
            return self._all_held()
        self._held.append(Piece(token, self._stream.feed(token.id)))
        held = "".join(piece.text for piece in self._held)
        found = min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=None)
        if found is not None:
            self.finish_reason = "stop"
            return self._release(found)
        if self._left == 0:
            self.finish_reason = "length"
            return self._all_held()
        return self._release(len(held) - max((_overlap(held, stop) for stop in self._stops), default=0))

    def _all_held(self) -> list[Piece]:
        """Those held back, and a sign for a character that stays incomplete."""
        held, self._held = self._held, []
        return _with_rest(held, self._stream.finish())

    def _release(self, length: int) -> list[Piece]:
        """The pieces with the first `length` characters; at the end of the text, the last one may be cut."""
        released: list[Piece] = []
        while self._held and (len(self._held[0].text) <= length or (self.finish_reason and length)):
            token, text = self._held.pop(0)
            released.append(Piece(token, text[:length]))
            length -= min(length, len(text))
        return released


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


def _with_rest(pieces: list[Piece], rest: str) -> list[Piece]:
    """With `rest` at the end of the last piece."""
    if not pieces or not rest:
        return pieces
    *others, (token, text) = pieces
    return [*others, Piece(token, text + rest)]
