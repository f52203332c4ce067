"""What a sequence of a batch gets does not depend on the others, nor on when they come and go."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.model.gpt import GPT
from pipeline.serve.batch import Batch, Prompt, Row, Token
from pipeline.serve.drawing import Choice, Drawing
from pipeline.serve.sampling import Reader
from tests import tiny
from tests.family import RECURRENT, VARIANTS

VOCAB_SIZE = 11
PROMPTS = ([3], [5, 3, 5], [2, 7, 1, 8, 2, 8, 1, 8], [1, 2])  # as long as the window of 8, and shorter
LENGTHS = (18, 12, 9, 14)  # past two windows
JOINS = (0, 1, 1, 5)  # the step at which each joins


class Heard(Batch):
    """A batch that keeps the logits of each row."""

    def __init__(self, model: GPT, depth: int | None = None) -> None:
        super().__init__(model, VOCAB_SIZE, depth, torch.device("cpu"))
        self.logits: dict[Row, list[torch.Tensor]] = {}

    def run(self, prompts: list[Prompt], joins: tuple[int, ...], lengths: tuple[int, ...]) -> list[Row]:
        limits = {row: length for prompt, length in zip(prompts, lengths, strict=True) for row in prompt.rows}
        for step in range(max(joins) + max(lengths)):
            self.step([prompt for prompt, join in zip(prompts, joins, strict=True) if join == step])
            for row in [row for row in limits if row.drawn == limits[row]]:
                self.leave(row)
                del limits[row]
        assert len(self) == 0 and not limits
        return [row for prompt in prompts for row in prompt.rows]

    def _next_logits(self, joining: list[Prompt]) -> torch.Tensor:  # type: ignore[override]
        logits = super()._next_logits(joining)
        for row, own in zip([*self._cached, *self._shifted], logits, strict=True):
            self.logits.setdefault(row, []).append(own)
        return logits


def logits_alone(model: GPT, row: Row) -> torch.Tensor:
    """By `Reader`, the engine of `make sample`."""
    prompt, *tokens = torch.tensor(row.prompt.ids), *row.ids[len(row.prompt.ids) : -1]
    reader = Reader(model, [prompt], len(tokens), None)
    logits = [reader.start(), *(reader.next(torch.tensor([token])).clone() for token in tokens)]
    return torch.cat(logits)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_sequences_that_join_and_leave_are_continued_as_if_alone(name: str) -> None:
    model = tiny.model(**VARIANTS[name])
    batch = Heard(model)
    prompts = [Prompt(ids, [Choice(seed=number, top_p=0.9)]) for number, ids in enumerate(PROMPTS)]
    for row, length in zip(batch.run(prompts, JOINS, LENGTHS), LENGTHS, strict=True):
        torch.testing.assert_close(
            torch.stack(batch.logits[row]), logits_alone(model, row), atol=1e-5, rtol=0
        )
        alone = Prompt(row.prompt.ids, [row.choice])
        assert Heard(model).run([alone], (0,), (length,))[0].ids == row.ids


def test_a_depth_of_its_own() -> None:
    model = tiny.model(**RECURRENT)
    texts = [
        Heard(model, depth).run([Prompt([3, 1], [Choice(temperature=0)])], (0,), (6,))[0].ids
        for depth in (None, 3, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_sequences_of_one_prompt_differ_and_repeat_with_the_seed() -> None:
    choices = [Choice(seed=5, number=number) for number in range(6)]
    texts = [
        [tuple(row.ids) for row in Heard(tiny.model()).run([Prompt([3, 1], choices)], (0,), (8,))]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 4


def test_what_is_told_of_each_token() -> None:
    model = tiny.model()
    prompt = Prompt([3, 1, 4, 1], [Choice(temperature=0)], alternatives=2, score=True)
    (row, token), *_ = Batch(model, VOCAB_SIZE, None, torch.device("cpu")).step([prompt])
    with torch.no_grad():
        expected = model(torch.tensor([[3, 1, 4, 1]]))[0].log_softmax(-1)
    for position, told in enumerate([*prompt.scores, token]):
        assert told.log_probability == pytest.approx(expected[position, told.id].item(), abs=1e-5)
        values, ids = expected[position].topk(2)
        assert [id for id, _ in told.likeliest] == ids.tolist()
        assert [nats for _, nats in told.likeliest] == pytest.approx(values.tolist(), abs=1e-5)
    assert [told.id for told in prompt.scores] == [1, 4, 1]
    assert row.ids[-1] == token.id == expected[-1].argmax()
    plain = Batch(model, VOCAB_SIZE, None, torch.device("cpu")).step([Prompt([3], [Choice(temperature=0)])])
    assert plain[0][1] == Token(plain[0][1].id, None, ())


def test_draws_follow_the_probabilities() -> None:
    """10,000 draws, with a bound that one of a thousand million seeds exceeds."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    for choice, expected in (
        (Choice(), logits.softmax(0)),
        (Choice(temperature=0.5), (logits / 0.5).softmax(0)),
        (Choice(top_k=2), logits.masked_fill(logits < 1, -math.inf).softmax(0)),
        (Choice(top_p=0.7), logits.masked_fill(logits < 1, -math.inf).softmax(0)),  # the first has 0.64
        (Choice(temperature=0), torch.eye(5)[0]),
    ):
        draw, counts = Drawing([choice] * 1000, 5), Counter[int]()
        for first in range(0, 10_000, 1000):
            counts.update(draw(logits.expand(1000, -1), range(first, first + 1000)).tolist())
        for id, probability in enumerate(expected.tolist()):
            assert abs(counts[id] / 10_000 - probability) <= 6 * math.sqrt(probability / 10_000)


def test_each_sequence_has_its_own_settings() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    choices = [Choice(), Choice(temperature=0), Choice(0.7, top_k=3, seed=1), Choice(top_p=0.5, seed=2)]
    for several in (choices, choices[:2], choices[:3]):
        together = Drawing(several, 50)
        for drawn in range(50):
            counts = [drawn, drawn + 7, 0, drawn][: len(several)]
            alone = [
                Drawing([choice], 50)(logits[row : row + 1], [counts[row]]).item()
                for row, choice in enumerate(several)
            ]
            assert together(logits[: len(several)], counts).tolist() == alone


def test_a_damaged_model_gets_one_line() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.head.ln_f.get_parameter("weight")[0] = torch.nan
    with pytest.raises(UserError, match="^the model's logits are not numbers"):
        Batch(model, VOCAB_SIZE, None, torch.device("cpu")).step([Prompt([1], [Choice()])])
