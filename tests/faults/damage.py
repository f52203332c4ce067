"""Damaged files: what reads one refuses it in one line, or repairs it; nothing uses it silently."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.moments import at_step
from tests.faults.project import (
    COMMANDS,
    Ended,
    Project,
    World,
    again,
    last_line,
    refused,
    same,
)
from tests.faults.table import Trial, fault

REFUSED_OR_REPAIRED = (
    "one line refuses the file and the status is 2, or the result is that of an undisturbed run"
)
PUBLISHED = COMMANDS["train"][2]


def flip(path: Path) -> None:
    """Flip one bit of a file in place, always the same one."""
    content = bytearray(path.read_bytes())
    bit = random.Random(f"{path.name} {len(content)}").randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def unpublish(project: Project) -> None:
    """Remove what training published, as DVC does before it runs the stage."""
    shutil.rmtree(project.folder / "results/model")
    for name in PUBLISHED[1:]:
        (project.folder / name).unlink()


def not_used(project: Project, command: str, ended: Ended, world: World) -> None:
    """Fail if a command ended well with another result, or badly without a reason."""
    if ended.status:
        refused(ended)
    else:
        same(project, world.reference, *COMMANDS[command][2])


@fault(
    "checkpoint-cut",
    "each file of the newest checkpoint cut at 0, 1, half of its and all but one of its bytes",
    "training says so, continues from the checkpoint before, and ends as an undisturbed run",
    quick=2,
)
def checkpoint_cut(world: World) -> Iterator[Trial]:
    newest = world.state("interrupted").checkpoints()[-1]
    for name in sorted(path.name for path in newest.iterdir()):
        for where in ("0", "1", "half", "last"):
            yield f"{name}-{where}", partial(_cut, name, where)


def _cut(name: str, where: str, world: World) -> None:
    project = world.project("interrupted")
    newest = project.checkpoints()[-1]
    size = (newest / name).stat().st_size
    os.truncate(newest / name, {"half": size // 2, "last": size - 1}.get(where) or int(where))
    ended = again(project, "train", world.reference)
    if (name, where) != ("manifest.json", "last"):  # a line's end, which changes no checksum in it
        assert f"{newest.name}/" in ended.err, "the damaged checkpoint is not mentioned"


@fault(
    "all-checkpoints-bad",
    "a bit flipped in the weights of every checkpoint, of an interrupted and of a finished run",
    "the best model suffices to publish a finished run; else one line refuses, and nothing is changed",
    quick=1,
)
def all_checkpoints_bad(world: World) -> Iterator[Trial]:
    yield "interrupted", partial(_all_bad, "interrupted", False)
    yield "finished", partial(_all_bad, "trained", False)
    yield "finished-and-best", partial(_all_bad, "trained", True)


def _all_bad(state: str, best_too: bool, world: World) -> None:
    project = world.project(state)
    damaged = [*project.checkpoints(), *([run / "best" for run in project.runs()] if best_too else [])]
    for folder in damaged:
        flip(folder / "model.safetensors")
    if state == "trained":
        unpublish(project)
    if state == "trained" and not best_too:
        again(project, "train", world.reference)
        return
    before = project.tree()
    refused(project("train"))
    assert project.tree() == before, "files have changed"


@fault(
    "bit-in-interrupted-run",
    "a bit flipped in each file below `runs/` of an interrupted run, then training again",
    REFUSED_OR_REPAIRED,
)
def bit_in_interrupted_run(world: World) -> Iterator[Trial]:
    for name in _in_run(world, "interrupted"):
        yield name, partial(_flip_in_run, "interrupted", name)


@fault(
    "bit-in-finished-run",
    "a bit flipped in each file below `runs/` of a finished run, then publishing it again",
    REFUSED_OR_REPAIRED,
)
def bit_in_finished_run(world: World) -> Iterator[Trial]:
    for name in _in_run(world, "trained"):
        yield name, partial(_flip_in_run, "trained", name)


def _in_run(world: World, state: str) -> list[str]:
    """The files of the only run, relative to it."""
    project = world.state(state)
    (run,) = project.runs()
    return [os.path.relpath(project.folder / name, run) for name in project.files("runs")]


def _flip_in_run(state: str, name: str, world: World) -> None:
    project = world.project(state)
    (run,) = project.runs()
    flip(run / name)
    if state == "trained":
        unpublish(project)
    not_used(project, "train", project("train"), world)


@fault(
    "bit-in-tokens",
    "a bit flipped in each file of `data/<dataset>/<tokenizer>/`, then training or an evaluation",
    REFUSED_OR_REPAIRED,
    quick=2,
)
def bit_in_tokens(world: World) -> Iterator[Trial]:
    for name in world.state("trained").files("data/tiny/char"):
        for command, state in (("train", "tokens"), ("eval", "trained"), ("depth", "trained")):
            yield f"{command}-{Path(name).name}", partial(_flip_for, name, command, state)


@fault(
    "bit-in-raw",
    "a bit flipped in each file of `data/<dataset>/raw/`, or one letter changed, then tokenizing it",
    REFUSED_OR_REPAIRED,
)
def bit_in_raw(world: World) -> Iterator[Trial]:
    for name in world.state("downloaded").files("data/tiny/raw"):
        yield Path(name).name, partial(_flip_for, name, "tokenize", "downloaded")
        yield f"letter-{Path(name).name}", partial(_change_letter, name)


def _change_letter(name: str, world: World) -> None:
    project = world.project("downloaded")
    path = project.folder / name
    path.write_bytes(path.read_bytes().replace(b"ship", b"shiq", 1))
    not_used(project, "tokenize", project("tokenize"), world)


@fault(
    "bit-in-results",
    "a bit flipped in each file of `results/`, then sampling, exporting, the depth curve, the summary",
    REFUSED_OR_REPAIRED,
)
def bit_in_results(world: World) -> Iterator[Trial]:
    for name in world.state("trained").files("results"):
        if not name.startswith("results/export"):
            for command in ("sample", "export", "depth"):
                yield f"{command}-{name}", partial(_flip_for, name, command, "trained")
            yield f"summary-{name}", partial(_flip_for_summary, name)


def _flip_for(name: str, command: str, state: str, world: World) -> None:
    project = world.project(state)
    flip(project.folder / name)
    not_used(project, command, project(command), world)


def _flip_for_summary(name: str, world: World) -> None:
    project = world.project("trained")
    expected = project("summary").out
    flip(project.folder / name)
    ended = project("summary")
    if ended.status:
        refused(ended)
    else:
        assert ended.out == expected, "what it shows differs, and it says nothing"


@fault(
    "bit-in-export",
    "a bit flipped in each file of `results/export/` but the card, which its user may edit; then it is "
    "uploaded to a hub that does not answer",
    "one line refuses the export before anything is sent",
)
def bit_in_export(world: World) -> Iterator[Trial]:
    for name in world.state("trained").files("results/export"):
        if Path(name).name != "README.md":
            yield Path(name).name, partial(_flip_exported, name)


def _flip_exported(name: str, world: World) -> None:
    def inject(_: Path) -> None:
        os.environ.update({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "of_the_tests"})

    project = world.project("trained")
    whole = project("upload", inject=inject)
    flip(project.folder / name)
    ended = project("upload", inject=inject)
    refused(ended)
    assert last_line(ended) != last_line(whole), f"it would be sent: {last_line(ended)}"
    named = Path(name).name
    assert named in last_line(ended) or named == "manifest.json", f"the file is not named: {last_line(ended)}"


@fault(
    "bit-then-verify",
    "a bit flipped in each file of `data/`, `runs/` and `results/`, then `gpt-pipeline verify`",
    "it names the file, or the folder of a manifest, and the status is 2",
    dvc=True,
)
def bit_then_verify(world: World) -> Iterator[Trial]:
    for name in world.state("dvc-trained").files("data/tiny/raw", "data/tiny/char", "results", "runs"):
        if name != "results/live.csv":  # a link to the log of a run
            yield name, partial(_flip_then_verify, name)


@fault(
    "bit-under-dvc",
    "a bit flipped in 12 files, drawn with a seed, of `data/` and `results/`, which are links into DVC's "
    "cache; then `dvc repro`, or first `gpt-pipeline verify`",
    "one line refuses the file, or everything is again as in an undisturbed run",
    dvc=True,
)
def bit_under_dvc(world: World) -> Iterator[Trial]:
    names = world.state("dvc-trained").files("data/tiny/raw", "data/tiny/char", "results")
    for name in sorted(random.Random(0).sample(names, 12)):
        yield name, partial(_flip_under_dvc, name, False)
        yield f"verified-{name}", partial(_flip_under_dvc, name, True)


def _flip_then_verify(name: str, world: World) -> None:
    _verified(name, world)


def _verified(name: str, world: World) -> Project:
    """A project with a flipped bit, which `verify` has seen."""
    project = world.project("dvc-trained")
    flip(project.folder / name)
    ended = project("verify")
    refused(ended)
    path = Path(name)
    named = str(path.parent if path.name == "manifest.json" else path)
    assert named in ended.out + ended.err, f"the file is not named: {last_line(ended)}"
    return project


def _flip_under_dvc(name: str, verify: bool, world: World) -> None:
    if verify:
        project = _verified(name, world)
    else:
        project = world.project("dvc-trained")
        flip(project.folder / name)
    ended = project.process("dvc repro")
    if ended.status:
        assert not verify, f"`dvc repro` after verify: {last_line(ended)}"
        assert "error: " in ended.err or "ERROR: " in ended.err, f"no reason: {last_line(ended)}"
    else:
        same(project, world.dvc_reference)


@fault(
    "log-damaged",
    "`log.csv` of an interrupted run halved, emptied, removed; a figure in it or in the final metrics edited",
    REFUSED_OR_REPAIRED,
)
def log_damaged(world: World) -> Iterator[Trial]:
    for how in ("halved", "emptied", "removed", "edited"):
        yield how, partial(_damage_log, how)
    yield "finished", _edit_finished


def _damage_log(how: str, world: World) -> None:
    project = world.project("interrupted")
    log = project.runs()[0] / "log.csv"
    text = log.read_text()
    lines = text.splitlines(keepends=True)
    if how == "removed":
        log.unlink()
    else:
        edited = "".join([lines[0], lines[1].replace(",3.", ",2.", 1), *lines[2:]])
        assert edited != text
        log.write_text({"halved": "".join(lines[: len(lines) // 2]), "emptied": ""}.get(how, edited))
    not_used(project, "train", project("train"), world)


def _edit_finished(world: World) -> None:
    project = world.project("trained")
    finished = project.runs()[0] / "finished/metrics.json"
    finished.write_text(json.dumps(json.loads(finished.read_text()) | {"val_loss": 0.1}))
    unpublish(project)
    not_used(project, "train", project("train"), world)


@fault(
    "tokenizer-swapped",
    "two letters swapped in `tokenizer.json`, then training, publishing, evaluating",
    REFUSED_OR_REPAIRED,
    quick=1,
)
def tokenizer_swapped(world: World) -> Iterator[Trial]:
    for command, state in (("train", "tokens"), ("train", "trained"), ("eval", "trained")):
        yield f"{command}-{state}", partial(_swap, command, state)


def _swap(command: str, state: str, world: World) -> None:
    project = world.project(state)
    path = project.folder / "data/tiny/char/tokenizer.json"
    text = path.read_text()
    swapped = text.replace('"a"', '"?"').replace('"e"', '"a"').replace('"?"', '"e"')
    assert swapped != text
    path.write_text(swapped)
    not_used(project, command, project(command), world)


@fault(
    "shard-cut-while-training",
    "all shards of the training split cut to nothing at step 5",
    "one line names a shard and the status is 2; with the shards back, training ends as if nothing was",
)
def shard_cut(world: World) -> Iterator[Trial]:
    yield "cut", _cut_shards


def _cut_shards(world: World) -> None:
    project = world.project("tokens")
    shards = sorted((project.folder / "data/tiny/char").glob("train-*.bin"))
    before = [shard.read_bytes() for shard in shards]

    def cut(_: object) -> None:
        for shard in shards:
            os.truncate(shard, 0)

    ended = project("train", inject=at_step(5, cut))
    refused(ended)
    assert "train-" in last_line(ended), f"no shard is named: {last_line(ended)}"
    for shard, content in zip(shards, before, strict=True):
        shard.write_bytes(content)
    again(project, "train", world.reference)
