"""Where the time of a training step goes, and how fast it could be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config import presets
from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, Params, load_params
from pipeline.config.paths import RESULTS
from pipeline.storage.files import write_text

if TYPE_CHECKING:  # PyTorch takes seconds to import, which --help need not wait for
    from pipeline.train.profile import StepProfile, StepTimes

TRACE = RESULTS / "profile-trace.json"
OTHER = {"float32": "bfloat16", "bfloat16": "float32", "float16": "float32"}
CLOSE = 0.95  # a dtype has to be this much faster to be advised


def main(
    set: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET...", help="What to change, as in `experiment`: model.n_layer=2.", show_default=False
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset; by default what params.yaml says.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 50,
    fixed_batch: Annotated[
        bool,
        typer.Option(
            "--fixed-batch", help="Read the same random tokens in every step, as is done without a text."
        ),
    ] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Find the largest micro-batch that fits; put it into params.yaml.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Write a trace of three steps, and list the slowest operators.")
    ] = False,
) -> None:
    """Measure a training step: its parts, its limit on this machine, and the faster dtype.

    It trains in a temporary folder: runs/ and results/model stay as they are.
    """
    changes = [*(set or []), *(overrides or [])]
    params = presets.composed(preset).with_overrides(changes) if preset else load_params(changes)
    params.check_sections()
    if fit and (preset or changes):
        raise UserError(
            f"--fit: is for the parameters in {PARAMS_FILE}, without a preset or changes; put them there"
        )
    from pipeline.train.profile import StepProfile, by_turns

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        if fit:
            params = _fit(params, Path(folder, "fit"))
        profile = StepProfile(params, Path(folder, "own"), fixed_batch)
        print(_about(profile))
        print("\n" + "\n".join(_report(profile, profile.measure(steps))))
        other = OTHER[params.train.dtype]
        train = params.train.model_copy(update={"dtype": other})
        beside = StepProfile(params.model_copy(update={"train": train}), Path(folder, "other"), fixed_batch)
        seconds = by_turns({params.train.dtype: profile, other: beside}, min(steps, 30))
        print(f"\n{advice(params.train.dtype, seconds)}")
        if trace:
            print(f"\n{profile.trace(TRACE)}\n{TRACE}: the trace; open it in chrome://tracing")


def advice(dtype: str, seconds: dict[str, float]) -> str:
    """A line on whether another train.dtype than this is faster; `seconds` are those of a step with each."""
    other = next(name for name in seconds if name != dtype)
    ratio = seconds[other] / seconds[dtype]
    finding = f"{other} takes {ratio:.2f} of {dtype}'s step here"
    if ratio < CLOSE:
        return f"{finding}: set train.dtype={other}"
    return f"{finding}: train.dtype={dtype} is right"


def _fit(params: Params, folder: Path) -> Params:
    """The parameters with the largest micro-batch that fits, which is put into params.yaml too."""
    from pipeline.train.profile import largest_that_fits

    before = {name: getattr(params.train, name) for name in ("batch_size", "gradient_accumulation_steps")}
    after = dict(zip(before, largest_that_fits(params, folder), strict=True))
    if after == before:
        print(f"train.batch_size = {after['batch_size']} is the largest micro-batch that fits\n")
        return params
    text = PARAMS_FILE.read_text(encoding="utf-8")
    write_text(PARAMS_FILE, presets.overlay(text, {"train": after}))
    changes = ", ".join(f"train.{name}: {before[name]} -> {after[name]}" for name in after)
    print(f"{PARAMS_FILE}: {changes}\n")
    return load_params()


def _about(profile: StepProfile) -> str:
    train, model = profile.params.train, profile.trainer.model
    text = profile.text or "the same random tokens in every step"
    number = train.gradient_accumulation_steps
    batch = f"{train.batch_size} x {model.block_size} tokens" + (f" x {number}" if number > 1 else "")
    return f"{text}: {batch}, {model.num_params():,} parameters, {train.dtype} on {profile.device}"


def _report(profile: StepProfile, times: StepTimes) -> Iterator[str]:
    from pipeline.report.tables import plain_table

    whole = sum(times.parts.values())
    rows = [(name, f"{seconds * 1e3:.2f}", f"{seconds / whole:.1%}") for name, seconds in times.parts.items()]
    yield plain_table([("", "ms", "share"), *rows, ("a step", f"{whole * 1e3:.2f}", "100.0%")], "<>>")
    trainer, seconds = profile.trainer, times.median
    yield (
        f"\nmedian of {len(times.steps)} steps: {seconds * 1e3:.2f} ms, "
        f"{trainer.tokens_per_step / seconds:,.0f} tokens/s, "
        f"MFU {trainer.flops_per_step / seconds / trainer.peak_flops:.1%}"
    )
    if rate := profile.matrix_rate():
        limit = trainer.flops_per_step / rate
        yield (
            f"limit {limit * 1e3:.2f} ms, measured {seconds * 1e3:.2f} ms: this machine computes the model's "
            f"matrix products at {rate / 1e9:,.0f} GFLOP/s"
        )
