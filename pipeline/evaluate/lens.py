"""The depth lens: what a model predicts for each token of a text after each of its steps, as numbers.

Each residual stream goes through the model's final norm and head ("logit lens", nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pipeline.model.gpt import GPT
from pipeline.model.halting import LearnedStopping
from pipeline.model.moe import MixtureOfExperts, Routing
from pipeline.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class ExpertChoices:
    """Which experts the tokens took when a mixture of experts ran: once for each layer or loop step.

    `load` (experts) is the share of tokens that took each expert; a last row is the dummy's, if there is one.
    """

    layer: str  # the mixture's name in the log, such as moe0
    run: int  # 1, 2, …: a shared mixture runs several times
    chosen: torch.Tensor  # (T, top_k)
    weights: torch.Tensor  # (T, top_k)
    load: torch.Tensor  # (candidates)
    dummy: bool  # whether the last candidate is the dummy, which costs nothing


@dataclass(frozen=True)
class Lens:
    """What a model makes of T tokens after each of D numbers of steps.

    `nats[d, t]` is the loss of token t + 1, which is predicted from the tokens up to t; `steps_taken` says
    after how many steps learned stopping ended for each token. It is the expected number of steps for a model
    that has no threshold, and None for one that takes every step. A token that has stopped keeps its state;
    in a coda it still sees others that go on. `trained_depth` and `experts` are those of the model as it is
    used.
    """

    ids: torch.Tensor  # (T)
    depths: Sequence[int]
    unit: str  # what one step is
    trained_depth: int
    nats: torch.Tensor  # (D, T - 1)
    top_ids: torch.Tensor  # (D, T, top), the most probable first
    top_probabilities: torch.Tensor  # (D, T, top)
    steps_taken: torch.Tensor | None  # (T)
    experts: Sequence[ExpertChoices]


@torch.inference_mode()
def lens(
    model: GPT,
    ids: torch.Tensor,
    vocab_size: int,
    top: int = 5,
    depths: Sequence[int] | None = None,
    last: int = 0,
) -> Lens:
    """Look at a model in evaluation mode while it reads ids (T,), at most `block_size` of them.

    Ids from `vocab_size` on are padding, and not among the `top` predictions. `depths` are some of the
    model's, in order; by default all. With `last`, the lens shows only so many of the tokens, the last ones,
    which costs less with a large vocabulary.
    """
    depths = model.depths if depths is None else depths
    shown = ids[-last:]
    nats, top_ids, top_probabilities = [], [], []
    for depth, logits in zip(model.depths, model.logits_by_depth(ids[None], last), strict=True):
        if depth not in depths:
            continue
        log_probabilities = logits[0].float().log_softmax(-1)  # (T, vocabulary)
        nats.append(-log_probabilities[:-1].gather(-1, shown[1:, None])[:, 0].cpu())
        best = log_probabilities[:, :vocab_size].topk(min(top, vocab_size))
        top_ids.append(best.indices.cpu())
        top_probabilities.append(best.values.exp().cpu())
    steps_taken, experts = decisions(model, ids)
    return Lens(
        shown.cpu(),
        depths,
        model.trunk.unit,
        model.depth,
        torch.stack(nats),
        torch.stack(top_ids),
        torch.stack(top_probabilities),
        None if steps_taken is None else steps_taken[-last:],
        [replace(one, chosen=one.chosen[-last:], weights=one.weights[-last:]) for one in experts],
    )


@torch.inference_mode()
def decisions(model: GPT, ids: torch.Tensor) -> tuple[torch.Tensor | None, list[ExpertChoices]]:
    """The steps that each token takes (T,), and its experts, while a model reads ids (T,)."""
    gates: list[torch.Tensor] = []  # (T): the probability of stopping before step 2, 3, …
    routings: list[tuple[MixtureOfExperts, Routing]] = []
    with ExitStack() as hooks:
        for mixture in (part for part in model.modules() if isinstance(part, MixtureOfExperts)):

            def note(_: nn.Module, __: Any, routing: Routing, mixture: MixtureOfExperts = mixture) -> None:
                routings.append((mixture, routing))

            hooks.enter_context(mixture.router.register_forward_hook(note))
        if model.stopping is not None:
            hooks.enter_context(
                model.stopping.gate.register_forward_hook(lambda _, __, p: gates.append(p[0, :, 0].cpu()))
            )
        model.hidden_states(ids[None])
    runs: dict[str, int] = {}
    experts = []
    for mixture, routing in routings:
        runs[mixture.name] = run = runs.get(mixture.name, 0) + 1
        experts.append(_choices(mixture, run, routing))
    stopping = model.stopping
    return None if stopping is None else _steps(stopping, gates, len(ids), model.depth), experts


def _steps(stopping: LearnedStopping, gates: Sequence[torch.Tensor], T: int, depth: int) -> torch.Tensor:
    """How many steps each of T tokens takes, (T,): all of its mass before the first step is 1."""
    stays = torch.stack([torch.ones(T), *(1 - gate for gate in gates[: depth - 1])])  # (depth, T)
    remaining = stays.cumprod(0)
    threshold = stopping.threshold
    return (remaining if threshold is None else remaining >= 1 - threshold).float().sum(0)


def _choices(mixture: MixtureOfExperts, run: int, routing: Routing) -> ExpertChoices:
    tokens, candidates = routing.probabilities.shape
    chosen = routing.chosen.cpu()
    load = torch.bincount(chosen.flatten(), minlength=candidates) / tokens
    return ExpertChoices(mixture.name, run, chosen, routing.weights.cpu(), load, mixture.router.dummy)


def as_json(found: Lens, tokenizer: Tokenizer) -> dict[str, Any]:
    """A lens as plain lists, with the text of each token; numbers are rounded to what a reader can see.

    `predictions[d][t]` has the [text, probability] of what may follow token t; `nats[d][t]` is the loss of
    token t + 1.
    """

    def rounded(values: torch.Tensor, digits: int = 4) -> Any:
        return torch.round(values.double(), decimals=digits).tolist()

    texts = shown_texts(tokenizer)
    return {
        "tokens": [texts[i] for i in found.ids.tolist()],
        "depths": list(found.depths),
        "unit": found.unit,
        "trained_depth": found.trained_depth,
        "nats": rounded(found.nats),
        "predictions": [
            [
                [[texts[i], probability] for i, probability in zip(ids, probabilities, strict=True)]
                for ids, probabilities in zip(at_depth, its_probabilities, strict=True)
            ]
            for at_depth, its_probabilities in zip(
                found.top_ids.tolist(), rounded(found.top_probabilities), strict=True
            )
        ],
        "steps_taken": None if found.steps_taken is None else rounded(found.steps_taken, 2),
        "experts": [
            {
                "layer": choices.layer,
                "run": choices.run,
                "chosen": choices.chosen.tolist(),
                "load": rounded(choices.load),
                "dummy": choices.dummy,
            }
            for choices in found.experts
        ],
    }


def shown_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each id: bytes that are no UTF-8 as ⟨e2⟩, the end of a text by its name."""
    return [
        f"⟨{'end of text' if i == tokenizer.end_of_text else 'nothing'}⟩" if not token else _shown(token)
        for i, token in enumerate(tokenizer.vocabulary)
    ]


def _shown(token: bytes) -> str:
    """Text whose bytes that are no UTF-8 are written as ⟨e2⟩."""
    return "".join(
        f"⟨{ord(character) - 0xDC00:02x}⟩" if 0xDC80 <= ord(character) <= 0xDCFF else character
        for character in token.decode("utf-8", errors="surrogateescape")
    )
