"""The model type `gpt-pipeline` for lm-evaluation-harness: its tasks with our scoring and decoding.

Importing this module registers the type. It needs the optional extra `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from pipeline.config.errors import UserError
from pipeline.evaluate.scoring import Group, Score, encode_pair, end_of_text, score
from pipeline.model.load import load_model
from pipeline.serve.sampling import TextStream, TokenSampler, generate
from pipeline.weights.open import open_model

NAME = "gpt-pipeline"
MAX_NEW_TOKENS = 256  # unless a task says otherwise; lm-evaluation-harness has the same default
SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
BATCH_SIZE = 16  # for batch_size=auto without max_batch_size


@register_model(NAME)
class PipelineLM(LM):
    """The model that `pretrained` names: a folder, gpt2 (-medium, -large, -xl), or a name on the hub."""

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        stored = open_model(pretrained)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tokenizer = stored.tokenizer()
        self._model = load_model(stored, self._device)
        automatic = str(batch_size).startswith("auto")
        self._batch_size = max_batch_size or BATCH_SIZE if automatic else int(batch_size)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) for each continuation.

        Requests with the same context, such as the answers to one question, share its keys and values.
        """
        members: dict[tuple[int, ...], list[int]] = {}
        continuations = []
        for index, request in enumerate(requests):
            context, continuation = encode_pair(self._tokenizer, *request.args)
            members.setdefault(tuple(context), []).append(index)
            continuations.append(continuation)
        groups = [Group(context, [continuations[i] for i in own]) for context, own in members.items()]
        indices = list(members.values())
        results = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm) as progress:
            for group, scores in self._score(groups):
                for index, result in zip(indices[group], scores, strict=True):
                    results[index] = (result.log_probability, result.greedy)
                    self.cache_hook.add_partial("loglikelihood", requests[index].args, results[index])
                progress.update(len(scores))
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each text, in lm-evaluation-harness's rolling windows.

        An end-of-text token precedes the text. If the tokenizer has none, the first token is not predicted.
        """
        groups, owners = [], []
        for index, request in enumerate(requests):
            ids = self._tokenizer.encode(*request.args).tolist()
            if self._tokenizer.end_of_text is not None:
                ids = [self._tokenizer.end_of_text, *ids]
            windows = get_rolling_token_windows(ids[1:], ids[0] if ids else 0, self._model.block_size, 1)
            for context, new in map(make_disjoint_window, windows):
                groups.append(Group(context, [new]))
                owners.append(index)
        results = [0.0] * len(requests)
        scored = tqdm(self._score(groups), "loglikelihood_rolling", len(groups), disable=disable_tqdm)
        for group, (window,) in scored:
            results[owners[group]] += window.log_probability
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate text after each context, up to a stop sequence or the end-of-text token.

        Decoding is greedy unless the request has a temperature above 0. Raises UserError for a setting that
        is not in SETTINGS.
        """
        results = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, settings = request.args
            unknown = sorted(settings.keys() - SETTINGS)
            if unknown:
                raise UserError(f"generation setting {unknown[0]}: not one of {', '.join(sorted(SETTINGS))}")
            results.append(self._write(context, **settings))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    def _write(
        self,
        context: str,
        until: str | Sequence[str] = (),
        max_gen_toks: int = MAX_NEW_TOKENS,
        do_sample: bool = True,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> str:
        sampler = TokenSampler(temperature, top_k, top_p, greedy=not (do_sample and temperature > 0))
        prompt = self._prompt(context)[-max(1, self._model.block_size - max_gen_toks) :]  # room to generate
        ids = torch.tensor([prompt], device=self._device)
        stops = [until] if isinstance(until, str) else until
        stream, text = TextStream(self._tokenizer), ""
        for token in generate(self._model, ids, max_gen_toks, sampler, self._tokenizer.vocab_size):
            if token.item() == self._tokenizer.end_of_text:
                break
            text += stream.feed(int(token))
            if any(stop in text for stop in stops):
                break
        text += stream.finish()
        return min((text.split(stop)[0] for stop in stops), key=len, default=text)

    def _prompt(self, context: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(context).tolist()
        return ids or [end_of_text(self._tokenizer)]

    def _score(self, groups: list[Group]) -> Iterator[tuple[int, list[Score]]]:
        return score(self._model, groups, self._tokenizer.vocab_size, self._device, self._batch_size)
