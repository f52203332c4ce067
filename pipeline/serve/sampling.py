"""Decoding with a KV cache: temperature, top-k, top-p or greedy, several samples in one batch."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Sample
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.model.halting import LearnedStopping
from pipeline.model.moe import MixtureOfExperts
from pipeline.model.size import model_size
from pipeline.runtime.memory import memory_of
from pipeline.storage.machine import binary
from pipeline.tokens.tokenizers import Tokenizer


@dataclass
class TokenSampler:
    """Chooses each row's next token from logits (B, vocabulary). Equal generator states give equal tokens."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    generator: torch.Generator | None = None

    @classmethod
    def of(cls, settings: Sample, device: torch.device) -> TokenSampler:
        """What the section `sample` of the parameters says, from the start of its seed."""
        return cls(
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.greedy,
            torch.Generator(device).manual_seed(settings.seed),
        )

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The chosen ids (B,) for logits (B, vocabulary)."""
        if self.greedy:
            return logits.argmax(-1)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, num_samples=1, generator=self.generator)[:, 0]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The probabilities (B, vocabulary) to draw from, after temperature, top_k and top_p."""
        logits = logits - logits.amax(-1, keepdim=True)  # at most 0, so a small temperature cannot overflow
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None:  # nucleus sampling (Holtzman et al. 2020)
            ordered, ids = probabilities.sort(descending=True, stable=True)
            unneeded = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = torch.zeros_like(ordered).scatter(-1, ids, ordered.masked_fill(unneeded, 0.0))
            probabilities /= probabilities.sum(-1, keepdim=True)
        return probabilities


def check_memory(
    config: GPTConfig,
    prompts: int,
    samples: int,
    tokens: int,
    device: torch.device,
    field: str = "sample.num_samples",
) -> None:
    """Raise UserError if the keys and values of so many samples of each prompt cannot fit into memory.

    `tokens` are those of the longest prompt and of its sample; `field` is where the user set the samples.
    """
    width = config.n_embd // config.n_head * (config.n_kv_head or config.n_head)
    values = prompts * 2 * model_size(config).applications * min(config.block_size, tokens) * width
    needed, room = samples * values * 4, memory_of(device)
    if needed > room.total:
        raise UserError(
            f"{field} = {samples:,}: keys and values need {binary(needed)} of memory, but "
            f"{device} has {binary(room.total)}; set it to {max(1, room.total // (4 * values)):,} or less"
        )


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Iterable[torch.Tensor],
    max_new_tokens: int,
    sampler: TokenSampler,
    vocab_size: int,
    depth: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next ids (B,), `max_new_tokens` times, after B prompts (T,), which may differ in length.

    Beyond `block_size` tokens the window slides; `Reader` says how. Ids from `vocab_size` on are padding and
    never chosen. A recurrent model takes `depth` steps, by default the depth it was trained for. Raises
    UserError if the first logits are not finite.
    """
    reader = Reader(model, list(prompts), max_new_tokens, depth)
    logits = reader.start()[:, :vocab_size]
    if not logits.isfinite().all():  # only once: it waits for the GPU
        raise UserError("the model's logits are not numbers; its weights are damaged or it diverged")
    for number in range(max_new_tokens):
        token = sampler(logits)
        yield token
        if number + 1 < max_new_tokens:
            logits = reader.next(token)[:, :vocab_size]


class Reader:
    """Gives the logits (B, vocabulary) after prompts, and after each token (B,) that is added to all of them.

    Shorter prompts are padded on the left. Each token costs one pass over one position, with a KV cache.
    Beyond `block_size` tokens,

    - a model with learned positions reads the whole window again for each token, as nanoGPT does, because
      all positions change;
    - with rotary positions or ALiBi the cache slides: a token attends to the last `block_size` positions.
      What is kept of them was computed when they were new, from a window of their own (as in Mistral 7B,
      Jiang et al. 2023). So above the first layer, the logits depend on tokens that have left the window, and
      differ from those of a window that is read again.

    On a CUDA GPU, the pass over one position is captured as a CUDA graph, if its operations are always the
    same.
    """

    def __init__(self, model: GPT, prompts: list[torch.Tensor], tokens: int, depth: int | None) -> None:
        self._model = model
        self._depth = depth
        self._window, self._padding = _left_padded([prompt[-model.block_size :] for prompt in prompts])
        batch, length = self._window.shape
        self.cache = KVCache(min(model.block_size, length + tokens), batch, self._padding)
        self.replay: Callable[[torch.Tensor], torch.Tensor] | None = None

    def start(self) -> torch.Tensor:
        """The logits after the prompts."""
        return self._read(self._window)

    def next(self, token: torch.Tensor) -> torch.Tensor:
        """The logits after one more token."""
        model, cache, unseen = self._model, self.cache, token[:, None]
        if not model.slides:
            self._window = torch.cat([self._window, unseen], dim=1)
            if self._window.shape[1] > model.block_size:
                return self._read_shifted_window()
        elif cache.length == 2 * model.block_size:
            model.count_anew(cache)
        if self.replay is None and _can_be_captured(model):
            self.replay = captured(self._read, cache, unseen)
        return self._read(unseen) if self.replay is None else self.replay(unseen)

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.next_logits(ids, self.cache, self._depth)

    def _read_shifted_window(self) -> torch.Tensor:
        model, self._window = self._model, self._window[:, 1:]
        cache = None
        if self._padding is not None:
            self._padding = (self._padding - 1).clamp_min(0)
            cache = KVCache(model.block_size, len(self._window), self._padding)
        return model.next_logits(self._window, cache, self._depth)


def captured(
    read: Callable[[torch.Tensor], torch.Tensor], cache: KVCache, ids: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`read`, a pass over ids (B, 1) with this cache, as a CUDA graph: one launch instead of one per kernel.

    The result is overwritten by the next call.
    """
    cache.fix_shapes()
    length, ids = cache.length, ids.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces before a capture
        for _ in range(3):
            read(ids)
            cache.go_back(length)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = read(ids)
    cache.go_back(length)

    def replay(token: torch.Tensor) -> torch.Tensor:
        ids.copy_(token)
        graph.replay()
        cache.length += 1  # the graph counts on the device
        return logits

    return replay


def _can_be_captured(model: GPT) -> bool:
    """Whether the pass over one token is always the same operations, on a CUDA GPU."""
    varying = (MixtureOfExperts, LearnedStopping)
    return (
        model.head.ln_f.get_parameter("weight").device.type == "cuda"
        and not torch.is_autocast_enabled("cuda")  # its copies of the weights do not outlive it
        and not any(isinstance(part, varying) for part in model.modules())
    )


def _left_padded(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts (T,) as ids (B, T), and the number of positions of padding in each (B,); None if none has."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    ids = pad_sequence(prompts, batch_first=True, padding_side="left")
    return ids, None if len(lengths.unique()) == 1 else ids.shape[1] - lengths


class TextStream:
    """Decodes the ids of one sample one by one; holds back the bytes of an incomplete character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = tokenizer.vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._vocabulary[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
