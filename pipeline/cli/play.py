"""Write with a model in the terminal: it continues each line, and its settings can be changed in between."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.command_line import ModelName, Overrides
from pipeline.config.errors import UserError, one_line
from pipeline.config.params import Params, params_or_defaults
from pipeline.config.paths import MODEL

if TYPE_CHECKING:
    import torch

    from pipeline.model.gpt import GPT
    from pipeline.tokens.tokenizers import Tokenizer

SHORT = {"depth": "recurrent_depth", "tokens": "max_new_tokens"}  # other names of settings
SETTINGS = ("temperature", "top_k", "top_p", "greedy", "seed", "max_new_tokens", "recurrent_depth")
HELP = """\
Write a text, and the model continues it; \\n stands for a line end. An empty line lets it go on.
  :            shows the settings; the same seed gives the same text
  :seed=2      changes one: temperature, top_k, top_p, greedy, seed, tokens, depth
Ctrl-C stops an answer, Ctrl-D ends."""
# Backgrounds of the 256-color table for tokens that had less than this probability, from red to green.
LEVELS = ((0.02, 217), (0.1, 223), (0.3, 229), (0.6, 194), (1.1, 157))


def main(model: ModelName = str(MODEL), overrides: Overrides = None) -> None:
    """Continue what you write, with colors for the probability of each token.

    The settings are those of `sample` in params.yaml; change them with -S, or between two texts.
    """
    from pipeline.model.load import load_model
    from pipeline.runtime.device import use_device
    from pipeline.weights.open import open_trained

    params = params_or_defaults(overrides or [])
    stored, device = open_trained(model), use_device(params.runtime)
    _check_depth(params, stored.config.loops)
    tokenizer, gpt = stored.tokenizer(), load_model(stored, device)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # for the arrow keys and the history; not on every system
            import readline  # noqa: F401
        print(HELP)
    text = ""
    for line in _lines():
        try:
            if line.startswith(":"):
                changed = _changed(params, line[1:])
                _check_depth(changed, stored.config.loops)
                params = changed
                print(_settings(params))
                continue
            text = line.replace("\\n", "\n") or text
            text += _continue(gpt, tokenizer, device, params, text)
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)


def _lines() -> Iterator[str]:
    """What the user writes, line by line; Ctrl-C drops a line."""
    terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is an error, not the end
    while True:
        try:
            yield input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            print()


def _changed(params: Params, setting: str) -> Params:
    """The parameters with `name=value`; the same ones for an empty text. Raises UserError."""
    if not setting.strip():
        return params
    name, equals, value = (part.strip() for part in setting.partition("="))
    name = SHORT.get(name, name)
    if not equals or name not in SETTINGS:
        raise UserError(f":{setting}: write :name=value; the names are {', '.join([*SETTINGS, *SHORT])}")
    return params.with_overrides([f"sample.{name}={value}"])


def _check_depth(params: Params, loops: bool) -> None:
    if params.sample.recurrent_depth is not None and not loops:
        raise UserError(
            f"sample.recurrent_depth = {params.sample.recurrent_depth}: the model has no loop; leave it blank"
        )


def _settings(params: Params) -> str:
    values = ((name, getattr(params.sample, name)) for name in SETTINGS)
    return "  ".join(f"{name}={'' if value is None else value}" for name, value in values)


def _continue(gpt: GPT, tokenizer: Tokenizer, device: torch.device, params: Params, text: str) -> str:
    """Show what follows `text`, token by token, until Ctrl-C. Returns it."""
    from pipeline.serve.batch import Batch, Prompt
    from pipeline.serve.drawing import Choice
    from pipeline.serve.sampling import TextStream

    sample, written = params.sample, [""]
    ids = _read(text, tokenizer)[-gpt.block_size :]
    choice = Choice(0 if sample.greedy else sample.temperature, sample.top_k, sample.top_p, sample.seed)
    batch = Batch(gpt, tokenizer.vocab_size, sample.recurrent_depth, device)
    stream, colored = TextStream(tokenizer), _has_colors()
    safe = printable if sys.stdout.isatty() else str
    _show(safe(text))
    try:
        for number in range(sample.max_new_tokens):
            ((_, token),) = batch.step([] if number else [Prompt(ids, [choice], alternatives=0)])
            if token.id == tokenizer.end_of_text:
                break
            written.append(stream.feed(token.id))
            shown = safe(written[-1])
            _show(painted(shown, token.log_probability) if colored else shown)
        written.append(stream.finish())
        _show(written[-1])
    except KeyboardInterrupt:
        _show("\x1b[0m" if colored else "")  # it may have come within a sequence
    _show("\n")
    return "".join(written)


def _read(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text. Raises UserError if there are none, or if it cannot be encoded."""
    try:
        ids: list[int] = tokenizer.encode_prompt(text).tolist()
    except UserError as error:
        raise UserError(f"the text: {error}") from None
    if not ids:
        raise UserError("there is no text yet; write some first")
    return ids


def _has_colors() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """With U+FFFD for the characters that a terminal would act on: a model may write any."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def painted(text: str, log_probability: float | None) -> str:
    """Black on a background for the probability. A line end is outside, or it would fill the next line."""
    color = next(color for border, color in LEVELS if math.exp(log_probability or 0) < border)
    parts = [f"\x1b[38;5;16;48;5;{color}m{part}\x1b[0m" if part else "" for part in text.split("\n")]
    return "\n".join(parts)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
