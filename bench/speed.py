"""The table of speed: this project beside nanoGPT, nanoGPT's fork and an earlier version of itself, on a CPU.

Programs run by turns, each as a process of its own; a ratio is the median over pairs of neighboring runs.
A row names two programs of a trial and a figure of theirs, so that rows share their runs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from bench.docs import write_docs
from bench.fork import WITHOUT_TRACKERS
from bench.harness import (
    FORK,
    NANOGPT,
    ON_CPU,
    OUT_DIR,
    PRESET,
    VERDICTS,
    Figures,
    Peer,
    call_apart,
    copy_project,
    earlier_version,
    find_clone,
    machine,
    prepare_clone,
    prepare_here,
    put_preset,
    run_python,
    train_clone,
    train_here,
)
from bench.loss_curves import draw_curves, loss_curves
from bench.measure import step_split, tokens_per_second_here, tokens_per_second_nanogpt
from bench.variants import VARIANTS
from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.paths import BASELINES, METRICS, MODEL, RESULTS
from pipeline.config.validation import suggest
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text

STEM = RESULTS / "bench-speed"
PICTURE = RESULTS / "bench-speed.png"

EARLIER = "dfeb6cd"  # the last version before it was made faster
FAST = "fast-shakespeare-cpu"
# The same for as long as nanoGPT's run takes.
LONG = (
    FAST,
    ["train.batch_size=32", "train.max_iters=1000", "train.lr_decay_iters=1000", "train.eval_interval=500"],
)
SEEDS = (2001, 2002, 2003, 2004, 2005)  # nothing was tuned on these
DEMO, LARGER = "default", "small"

STEPS = {"step-128": 150, "step-384": 10, "experts": 150}
SHAPE_384 = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
BATCH_384 = {"batch_size": 16}
TWO_EXPERTS = {"moe": True, "moe_top_k": 2, "moe_dummy": False}
SAMPLES, NEW_TOKENS = 10, 500
WITHIN_CONTEXT = 63  # new tokens after a prompt of one, in a context of 64


@dataclass(frozen=True)
class Row:
    """A line of the table: which figure of which programs, and its limit."""

    name: str
    title: str
    trial: str
    here: str  # the program of this project
    peer: str | None
    quantity: str
    limit: float | None = None
    how: str = "ratio"  # see HOW
    at_least: bool = False

    def show(self, value: float | None) -> str:
        number, scale = SHOWN[self.quantity]
        return "" if value is None else number.format(value * scale)


@dataclass(frozen=True)
class Line:
    """What a row came to. `bound` is the least that this machine can take, in the unit of `here`."""

    row: Row
    here: float
    peer: float | None
    measured: float
    bound: float | None

    @property
    def met(self) -> bool | None:
        if self.row.limit is None:
            return None
        return self.measured >= self.row.limit if self.row.at_least else self.measured <= self.row.limit


HOW: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "ratio": lambda here, peer: median(a / b for a, b in zip(here, peer, strict=True)),
    "margin": lambda here, peer: min(b - a for a, b in zip(here, peer, strict=True)),
    "figure": lambda here, peer: median(here),
    "worst": lambda here, peer: max(here),
}

# How a quantity is shown, and what it is multiplied by for that.
SHOWN = {
    "seconds": ("{:.1f} s", 1.0),
    "step": ("{:.2f} ms", 1e3),
    "peak": ("{:.0f} MB", 1e-6),
    "params": ("{:,.0f}", 1.0),
    "tokens_per_second": ("{:,.0f}", 1.0),
    "val_loss": ("{:.4f}", 1.0),
    "under_kneser_ney": ("{:.4f}", 1.0),
    "val_bpb": ("{:.4f}", 1.0),
    "outside": ("{:.1%}", 1.0),
    "mfu": ("{:.1%}", 1.0),
    "first": ("{:.1f} s", 1.0),
}

# Name, title, trial, program, its peer, quantity, limit, and how they are compared.
ROWS = (
    Row("fast", f"whole run of {FAST}", "whole", "fast", "nanoGPT", "seconds", 0.15),
    Row("fast-loss", "its val loss, the worst seed", "whole", "fast", "nanoGPT", "val_loss", 1.88, "worst"),
    Row("fast-size", "its parameters", "whole", "fast", "nanoGPT", "params", 1.0),
    Row("long", "a whole run as long as nanoGPT's", "whole", "long", "nanoGPT", "seconds"),
    Row("long-loss", "its val loss, the worst seed", "whole", "long", "nanoGPT", "val_loss", 1.65, "worst"),
    Row("long-size", "its parameters", "whole", "long", "nanoGPT", "params", 1.0),
    Row("same", f"whole run of {PRESET}, nanoGPT's recipe", "whole", "same", "nanoGPT", "seconds"),
    Row("step", "step, 4 x 128, float32", "step-128", "float32", "nanoGPT", "step", 0.90),
    Row("step-bf16", "step, 4 x 128, bfloat16", "step-128", "bfloat16", "nanoGPT", "step", 0.6),
    Row("step-384", "step, 6 x 384, float32", "step-384", "float32", "nanoGPT", "step", 0.90),
    Row("step-384-bf16", "step, 6 x 384, bfloat16", "step-384", "bfloat16", "nanoGPT", "step", 0.28),
    Row("earlier", "step, 4 x 128, float32, beside EARLIER", "step-128", "float32", "earlier", "step"),
    Row("earlier-384", "step, 6 x 384, float32, beside EARLIER", "step-384", "float32", "earlier", "step"),
    Row("sample", "sampling, 4 x 128, whole process", "sample", "learned", "nanoGPT", "seconds", 0.6),
    Row("sample-rotary", "the same, rotary positions", "sample", "rotary", "nanoGPT", "seconds", 0.35),
    Row(
        *("sample-within", "tokens/s within the context", "within", "learned", "nanoGPT"),
        *("tokens_per_second", 4.0),
        at_least=True,
    ),
    Row("experts", "step, 4 experts, 2 computed, float32", "experts", "float32", "fork", "step", 0.55),
    Row("experts-bf16", "step, 4 experts, 2 computed, bfloat16", "experts", "bfloat16", "fork", "step", 0.55),
    Row("outside", f"outside the model, {FAST}", "split", FAST, None, "outside", 0.05, "figure"),
    Row("outside-same", f"outside the model, {PRESET}", "split", PRESET, None, "outside", 0.05, "figure"),
    Row("demo", "make demo, whole pipeline", "demo", "demo", None, "seconds", 90.0, "figure"),
    Row(
        *("demo-loss", "its val loss, nats under Kneser-Ney's", "demo", "demo", None),
        *("under_kneser_ney", 0.30, "figure"),
        at_least=True,
    ),
    Row(
        *("small", f"bits per byte, under those of {DEMO}'s recipe", "small", LARGER, DEMO),
        *("val_bpb", 0.25, "margin"),
        at_least=True,
    ),
    Row("memory", "peak memory, nanoGPT's configuration", "step-128", "float32", "nanoGPT", "peak", 0.9),
)
ONLY_IF_ASKED = ("small",)  # more than twenty minutes


class Lab:
    """Copies of the programs, ready to run, and what the rows of one trial have measured."""

    def __init__(self, folder: Path, clones: Mapping[str, Path], earlier: Path | None, runs: int) -> None:
        self.folder = folder
        self.runs = runs
        self.ours = folder / "here"
        prepare_here(self.ours)
        self.places = {"nanoGPT": folder / "nanoGPT", "fork": folder / "fork", "earlier": folder / "earlier"}
        for name, clone in clones.items():
            prepare_clone(name, clone, self.places[name], self.ours)
        if earlier is not None:
            prepare_here(self.places["earlier"], earlier)

    def run(self, trial: str, programs: Iterable[str]) -> dict[str, list[Figures]]:
        """The figures of each program of a trial, in the order of its runs; the order of turns alternates."""
        names = list(dict.fromkeys(programs))
        found: dict[str, list[Figures]] = {name: [] for name in names}
        runs = 1 if trial in ONLY_IF_ASKED else self.runs
        for number in range(runs):
            print(f"{trial}, {number + 1} of {runs}")
            for name in names if number % 2 == 0 else reversed(names):
                found[name].append(TRIALS[trial](self, name, number))
        return found


def main(
    clone: Annotated[
        Path | None, typer.Option(help="A clone of nanoGPT; by default one in the cache.", show_default=False)
    ] = None,
    fork: Annotated[
        Path | None,
        typer.Option(help="A clone of its recurrent fork; by default one in the cache.", show_default=False),
    ] = None,
    earlier: Annotated[str, typer.Option(help="A commit of this project to compare with.")] = EARLIER,
    runs: Annotated[int, typer.Option(min=1, max=len(SEEDS), help="Runs of each program, by turns.")] = 3,
    only: Annotated[
        str, typer.Option(help=f"Rows, separated by commas: {', '.join(row.name for row in ROWS)}, picture.")
    ] = "",
    docs: Annotated[bool, typer.Option("--docs", help="Then write docs/benchmarks.md.")] = False,
) -> None:
    """Measure speed and print the table. Without ONLY it takes about 40 minutes on two cores."""
    rows, picture = chosen(only)
    for trial in {row.trial for row in rows}:
        for preset, overrides in PRESETS.get(trial, ()):  # what is wrong there is said before anything runs
            presets.composed(preset).with_overrides(overrides)
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as name:
        folder = Path(name)
        clones, missing = _find_peers(rows, picture, {NANOGPT: clone, FORK: fork})
        version = folder / "version"
        if any(row.peer == "earlier" for row in rows) and (why := earlier_version(earlier, version)):
            missing["earlier"] = why
        for what, why in missing.items():
            print(f"left out is what needs {what}: {why}")
        rows = [row for row in rows if row.peer not in missing]
        if not rows and not (picture and "nanoGPT" not in missing):
            raise UserError("ONLY: nothing is left to measure; see the lines above")
        lab = Lab(folder, clones, version if version.exists() and "earlier" not in missing else None, runs)
        stem = STEM.with_name(f"{STEM.name}-{rows[0].name if len(rows) == 1 else 'some'}") if only else STEM
        report = ""
        measured: dict[str, dict[str, list[Figures]]] = {}
        for trial in dict.fromkeys(row.trial for row in rows):
            programs = [name for row in rows if row.trial == trial for name in (row.peer, row.here) if name]
            measured[trial] = lab.run(trial, programs)
            done = [row for row in rows if row.trial in measured]
            report = _write(stem, lines(done, measured), measured, missing, runs, earlier)  # after each
        if picture and "nanoGPT" not in missing:
            report += _draw(lab)
    print(f"\n{report}")
    if docs:
        write_docs()


def chosen(only: str) -> tuple[list[Row], bool]:
    """The rows that ONLY names, all but the long ones by default; and whether to draw the picture."""
    names = only.replace(",", " ").split()
    known = [*(row.name for row in ROWS), "picture"]
    for name in names:
        if name not in known:
            raise UserError(f"ONLY={name}: not a row{suggest(name, known)} (there are {', '.join(known)})")
    rows = [row for row in ROWS if (row.name in names if names else row.name not in ONLY_IF_ASKED)]
    return rows, not names or "picture" in names


def lines(rows: Iterable[Row], measured: Mapping[str, Mapping[str, Sequence[Figures]]]) -> list[Line]:
    """The lines of the table. Ratios and differences are between neighboring runs."""
    found = []
    for row in rows:
        programs = measured[row.trial]
        here = [figures[row.quantity] for figures in programs[row.here]]
        peer = [figures[row.quantity] for figures in programs[row.peer]] if row.peer else []
        bounds = [figures["bound"] for figures in programs[row.here] if "bound" in figures]
        found.append(
            Line(
                row,
                here=max(here) if row.how == "worst" else median(here),
                peer=median(peer) if peer else None,
                measured=HOW[row.how](here, peer),
                bound=median(bounds) if bounds and row.quantity == "step" else None,
            )
        )
    return found


def markdown(found: Iterable[Line]) -> str:
    """The table, which is readable on a terminal too."""
    cells = [("", "other", "here", "machine's limit", "measured", "limit", "")]
    for line in found:
        row = line.row
        measured = f"{line.measured:.3f}" if row.how == "ratio" else row.show(line.measured)
        sign = "≥" if row.at_least else "≤"
        cells.append(
            (
                row.title,
                row.show(line.peer),
                row.show(line.here),
                row.show(line.bound),
                measured,
                "" if row.limit is None else f"{sign} {row.limit:g}",
                VERDICTS[line.met],
            )
        )
    return markdown_table(cells, "<>>>>><")


def split_table(profiles: Mapping[str, Sequence[Figures]]) -> str:
    """Where the time of a step goes, for each preset that was measured."""
    parts = ("data", "forward", "backward", "optimizer", "logging", "rest")
    cells: list[Sequence[str]] = [("a step of", *parts, "all", "machine's limit")]
    for name, runs in profiles.items():
        means = [median(figures[part] for figures in runs) for part in parts]
        means += [sum(means), median(figures["bound"] for figures in runs)]
        cells.append((name, *(f"{seconds * 1e3:.2f} ms" for seconds in means)))
    return markdown_table(cells, "<" + ">" * (len(parts) + 2))


def _find_peers(
    rows: Sequence[Row], picture: bool, given: Mapping[Peer, Path | None]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The clones that these rows need, and why others are missing. A folder that was given has to be one."""
    needed = {row.peer for row in rows} | ({NANOGPT.name} if picture else set())
    clones, missing = {}, {}
    for peer, folder in given.items():
        if peer.name in needed:
            try:
                clones[peer.name] = find_clone(peer, folder)
            except UserError as error:
                if folder is not None:
                    raise
                missing[peer.name] = str(error)
    return clones, missing


def _draw(lab: Lab) -> str:
    """Draw loss against time, of runs that are not those of the table. Returns the line to print."""
    curves = loss_curves(lab.ours, lab.places["nanoGPT"], {FAST: (FAST, []), f"{LONG[0]}, longer": LONG})
    draw_curves(PICTURE, curves)
    write_json(PICTURE.with_suffix(".json").with_stem(f"{PICTURE.stem}-curves"), curves)
    return f"\n{PICTURE}: the picture"


def _write(
    stem: Path,
    found: Sequence[Line],
    measured: Mapping[str, Mapping[str, Sequence[Figures]]],
    missing: Mapping[str, str],
    runs: int,
    earlier: str,
) -> str:
    """Write the tables and the figures to results/. Returns the text to print."""
    tables = [markdown(found)]
    if "split" in measured:
        tables.append(split_table(measured["split"]))
    report = "\n\n".join([*tables, _notes(runs, earlier, missing)]) + "\n"
    table, figures = stem.with_suffix(".md"), stem.with_suffix(".json")
    write_text(table, f"# Speed\n\n{report}")
    rows = [asdict(line) | {"met": line.met} for line in found]
    about = {"machine": machine(), "seeds": SEEDS[:runs], "earlier": earlier, "missing": dict(missing)}
    write_json(figures, {**about, "table": rows, "runs": measured})
    return f"{report}\n{table}: these tables\n{figures}: the figures of every run"


def _notes(runs: int, earlier: str, missing: Mapping[str, str]) -> str:
    how_often = "One run" if runs == 1 else f"Medians of {runs} runs"
    left_out = "".join(f"\nLeft out is what needs {name}." for name in missing)
    return (
        f"{how_often} of each program, by turns, on {os.cpu_count()} cores; what is measured is the median\n"
        "ratio of neighboring runs, a loss or a share. Losses are nats per token over the whole validation\n"
        f"split, by one scorer. Sampling writes {SAMPLES} x {NEW_TOKENS} tokens. EARLIER is {earlier}. The\n"
        "machine's limit is the time that a step's FLOPs take at the rate at which this machine computes\n"
        f"the model's matrix products, each alone, in that precision.{left_out}"
    )


def _whole(lab: Lab, program: str, number: int) -> Figures:
    if program == "nanoGPT":
        settings = {"max_iters": 2000, "eval_interval": 250}
        return train_clone(program, lab.places[program], settings, number)
    preset, overrides = {"fast": (FAST, []), "long": LONG, "same": (PRESET, [])}[program]
    put_preset(lab.ours, preset)
    return train_here(program, lab.ours, [*overrides, f"train.seed={SEEDS[number]}"])


def _step(
    lab: Lab, program: str, number: int, steps: int, model: Mapping[str, object], batch: Mapping[str, object]
) -> Figures:
    if program in ("nanoGPT", "fork"):
        settings = {"max_iters": steps, "eval_interval": steps, "eval_iters": 5, **batch}
        if program == "fork":
            settings |= {**VARIANTS["moe"], "dtype": "float32", **WITHOUT_TRACKERS}
        else:
            settings |= model
        return train_clone(program, lab.places[program], settings, scored=False)
    folder = lab.places["earlier"] if program == "earlier" else lab.ours
    if program != "earlier":  # which has it already
        put_preset(folder, PRESET)
    dtype = "float32" if program == "earlier" else program
    overrides = [*_overrides("model", model), *_overrides("train", batch), f"train.dtype={dtype}"]
    short = [f"train.max_iters={steps}", f"train.eval_interval={steps}", "train.eval_iters=5"]
    figures = train_here(program, folder, [*overrides, *short])
    if program != "earlier":
        figures["bound"] = call_apart(step_split, folder, overrides, 1)["bound"]
    return figures


def _sample(lab: Lab, program: str, number: int) -> Figures:
    _train_to_sample(lab, program)
    if program == "nanoGPT":
        flags = [f"--num_samples={SAMPLES}", f"--max_new_tokens={NEW_TOKENS}", "--top_k=200"]
        arguments = ("sample.py", f"--out_dir={OUT_DIR}", *ON_CPU, *flags)
        return {"seconds": run_python("nanoGPT: sample", lab.places[program], *arguments).seconds}
    overrides = [f"-Ssample.num_samples={SAMPLES}", f"-Ssample.max_new_tokens={NEW_TOKENS}"]
    arguments = ("-m", "stages.sample", "--model", f"model-{program}", *overrides, "--out", "-")
    return {"seconds": run_python(f"{program}: sample", lab.ours, *arguments).seconds}


def _within(lab: Lab, program: str, number: int) -> Figures:
    print(f"  {program}: sample within the context", flush=True)
    if program == "nanoGPT":
        _train_to_sample(lab, program)
        measured = call_apart(tokens_per_second_nanogpt, lab.places[program], WITHIN_CONTEXT)
    else:
        put_preset(lab.ours, PRESET)
        overrides = [f"model.position={program}"]
        measured = call_apart(tokens_per_second_here, lab.ours, overrides, SAMPLES, WITHIN_CONTEXT)
    return {"tokens_per_second": measured}


def _train_to_sample(lab: Lab, program: str) -> None:
    """Train a model of nanoGPT's shape for a moment, once: its weights do not matter."""
    if program == "nanoGPT":
        mark = lab.places[program] / OUT_DIR / "to-sample"  # the next training of another shape removes it
        if not mark.exists():
            short = {"max_iters": 20, "eval_interval": 20, "eval_iters": 1}
            train_clone(program, lab.places[program], short, scored=False)
            mark.touch()
    elif not (lab.ours / f"model-{program}").exists():
        put_preset(lab.ours, PRESET)
        overrides = ["train.max_iters=20", "train.eval_interval=20", "train.eval_iters=1"]
        train_here(program, lab.ours, [f"model.position={program}", *overrides])
        (lab.ours / MODEL).rename(lab.ours / f"model-{program}")


def _split(lab: Lab, program: str, number: int) -> Figures:
    put_preset(lab.ours, program)
    print(f"  {program}: measure its steps", flush=True)
    return call_apart(step_split, lab.ours, [], 200)


def _demo(lab: Lab, program: str, number: int) -> Figures:
    folder = lab.folder / f"demo-{number}"
    copy_project(folder)
    put_preset(folder, DEMO)
    run_python("demo: set up DVC", folder, "-m", "pipeline.cli.configure_dvc")
    seconds = run_python("demo: run the pipeline", folder, "-m", "pipeline.cli.main", "demo").seconds
    figures = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    other = json.loads((folder / BASELINES / "kneser-ney.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return {"seconds": seconds, "under_kneser_ney": other["val_loss"] - figures["val_loss"]}


def _small(lab: Lab, program: str, number: int) -> Figures:
    larger = presets.composed(LARGER).model_dump()
    text = {"data": larger["data"]} if program == DEMO else None
    put_preset(lab.ours, program, text)
    for stage in ("download", "tokenize"):
        run_python(f"{program}: {stage}", lab.ours, "-m", f"stages.{stage}")
    figures = train_here(program, lab.ours, [])
    metrics = json.loads((lab.ours / METRICS).read_text(encoding="utf-8"))
    return figures | {"val_bpb": metrics["val_bpb"]}


TRIALS: dict[str, Callable[[Lab, str, int], Figures]] = {
    "whole": _whole,
    "step-128": partial(_step, steps=STEPS["step-128"], model={}, batch={}),
    "step-384": partial(_step, steps=STEPS["step-384"], model=SHAPE_384, batch=BATCH_384),
    "experts": partial(_step, steps=STEPS["experts"], model=TWO_EXPERTS, batch={}),
    "sample": _sample,
    "within": _within,
    "split": _split,
    "demo": _demo,
    "small": _small,
}


def _overrides(section: str, values: Mapping[str, object]) -> list[str]:
    return [f"{section}.{name}={str(value).lower()}" for name, value in values.items()]


# The presets of a trial, with overrides.
PRESETS: dict[str, Sequence[tuple[str, list[str]]]] = {
    "whole": ((FAST, []), LONG, (PRESET, [])),
    "split": ((FAST, []), (PRESET, [])),
    "experts": ((PRESET, _overrides("model", TWO_EXPERTS)),),
    "small": ((LARGER, []), (DEMO, [])),
}
