"""Generate text with a model, streamed to the terminal token by token."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config.command_line import ModelName, Overrides, run
from pipeline.config.errors import UserError
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.tokens.tokenizers import Tokenizer


def main(
    overrides: Overrides = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="The prompt, or FILE:path; overrides sample.start. Given several times, all are continued.",
            show_default=False,
        ),
    ] = None,
    model: ModelName = str(MODEL),
    out: Annotated[
        Path | None, typer.Option(help="Also save the samples to this file.", show_default=False)
    ] = None,
) -> None:
    """Generate sample.num_samples texts after each prompt; the first is shown while it is generated."""
    # PyTorch takes a second to import, which --help and completion need not wait for.
    import torch

    from pipeline.model.load import load_model
    from pipeline.runtime.device import use_device
    from pipeline.serve.samples import RULE, write_samples
    from pipeline.serve.sampling import TokenSampler, check_memory, generate
    from pipeline.storage.files import check_writable
    from pipeline.tokens.prompt import encode_prompt
    from pipeline.track.open import show_later
    from pipeline.weights.open import open_trained

    params = params_or_defaults(overrides or [])
    settings = params.sample
    if out is not None and str(out) != "-":  # - means the screen only
        check_writable(out)
    device = use_device(params.runtime)
    stored = open_trained(model)
    if settings.recurrent_depth is not None and not stored.config.loops:
        raise UserError(
            f"sample.recurrent_depth = {settings.recurrent_depth}: the model in {model} has no loop; "
            "leave it blank, or train with model.recurrent_shared_weights = true"
        )
    tokenizer = stored.tokenizer()
    prompts = [encode_prompt(text, tokenizer) for text in start or [settings.start]]
    longest = max(len(ids) for _, ids in prompts)
    check_memory(stored.config, len(prompts), settings.num_samples, longest + settings.max_new_tokens, device)
    gpt = load_model(stored, device)
    sampler = TokenSampler.of(settings, device)
    batch = [prompt for prompt in prompts for _ in range(settings.num_samples)]
    ids = [torch.from_numpy(ids).to(device) for _, ids in batch]
    tokens = generate(
        gpt, ids, settings.max_new_tokens, sampler, tokenizer.vocab_size, settings.recurrent_depth
    )
    samples, seconds, first_token = _decoded(tokens, [text for text, _ in batch], tokenizer)
    _show(f"\n{RULE}\n")
    for sample in samples[1:]:
        _show(f"{sample}\n{RULE}\n")
    made = f"{len(samples)} samples of {settings.max_new_tokens} tokens in {seconds:.1f} s"
    if out is not None and str(out) != "-":
        write_samples(out, samples, stored.sha256)
        show_later(stored.sha256, params, {"samples": samples})
        made = f"{out}: {made}"
    speed = len(samples) * settings.max_new_tokens / seconds
    print(f"{made}: {speed:,.0f} tokens/s, first token after {first_token:.2f} s", file=sys.stderr)


def _decoded(
    tokens: Iterable[Tensor], prompts: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[str], float, float]:
    """Each prompt with what follows it; the seconds until all of that was there, and until the first token.

    Shows the first of the texts as it grows.
    """
    from pipeline.serve.sampling import TextStream

    streams = [TextStream(tokenizer) for _ in prompts]
    texts = [[prompt] for prompt in prompts]  # the pieces of each
    _show(prompts[0])
    began = perf_counter()
    first_token = 0.0
    for chosen in tokens:
        for text, stream, token in zip(texts, streams, chosen.tolist(), strict=True):
            text.append(stream.feed(token))
        first_token = first_token or perf_counter() - began
        _show(texts[0][-1])
    seconds = perf_counter() - began
    for text, stream in zip(texts, streams, strict=True):
        text.append(stream.finish())
    _show(texts[0][-1])
    return ["".join(text) for text in texts], seconds, first_token


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run(main)
