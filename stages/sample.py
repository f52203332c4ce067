"""Generate text with a model, streamed to the terminal token by token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, Overrides, run
from pipeline.config.errors import UserError
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL


def main(
    overrides: Overrides = None,
    start: Annotated[
        str | None, typer.Option(help="The prompt, or FILE:path; overrides sample.start.", show_default=False)
    ] = None,
    model: ModelName = str(MODEL),
    out: Annotated[
        Path | None, typer.Option(help="Also save the samples to this file.", show_default=False)
    ] = None,
) -> None:
    """Generate sample.num_samples texts with a model; the first is shown while it is generated."""
    # PyTorch takes seconds to import, which --help and completion need not wait for.
    import torch

    from pipeline.model.load import load_model
    from pipeline.runtime.device import use_device
    from pipeline.serve.samples import RULE, write_samples
    from pipeline.serve.sampling import TextStream, TokenSampler, check_memory, generate
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
    prompt, ids = encode_prompt(settings.start if start is None else start, tokenizer)
    check_memory(stored.config, settings.num_samples, len(ids) + settings.max_new_tokens, device)
    gpt = load_model(stored, device)
    sampler = TokenSampler(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        greedy=settings.greedy,
        generator=torch.Generator(device).manual_seed(settings.seed),
    )
    streams = [TextStream(tokenizer) for _ in range(settings.num_samples)]
    texts = [prompt] * settings.num_samples
    _show(prompt)
    batch = torch.from_numpy(ids).to(device).expand(settings.num_samples, -1)  # (B, T)
    vocab_size, depth = tokenizer.vocab_size, settings.recurrent_depth
    for tokens in generate(gpt, batch, settings.max_new_tokens, sampler, vocab_size, depth):
        pieces = [stream.feed(token) for stream, token in zip(streams, tokens.tolist(), strict=True)]
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        _show(pieces[0])
    endings = [stream.finish() for stream in streams]
    _show(endings[0] + f"\n{RULE}\n")
    texts = [text + ending for text, ending in zip(texts, endings, strict=True)]
    for text in texts[1:]:
        _show(f"{text}\n{RULE}\n")
    if out is not None and str(out) != "-":
        write_samples(out, texts, stored.sha256)
        show_later(stored.sha256, params, {"samples": texts})
        print(f"{out}: {settings.num_samples} samples of {settings.max_new_tokens} tokens", file=sys.stderr)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run(main)
