"""What is recorded about files: the hash that each had when it was written, and what to do if it differs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.paths import (
    BASELINES,
    DATA,
    MODEL,
    PRETRAINED,
    RECORD,
    RESULTS,
    RUN_FILE,
    SAVED,
    SCALING,
    ZEROSHOT,
    checkpoints_in,
    runs_folder,
)
from pipeline.corpus.documents import corpus_files, fingerprint
from pipeline.corpus.sources import IDS_FILES, load_spec
from pipeline.storage.checksums import MANIFEST_FILE, checksum, read_checked_json, read_manifest
from pipeline.storage.dvc_cache import LOCKS, SET_ASIDE, locked_outputs, objects
from pipeline.tokens.shards import load_manifest
from pipeline.tokens.tokenizers import TOKENIZER_FILE
from pipeline.track.health_csv import HEALTH_FILE
from pipeline.track.open import LATER_FILE
from pipeline.train.checkpoint import LOG_FILE

PUBLISH = "`dvc repro -f -s train` publishes it again"
CARD = "README.md"  # of an export: its user may edit it
UNFINISHED = (".tmp", ".old", ".part", ".damaged")  # folders that no reader takes for whole


@dataclass(frozen=True)
class Recorded:
    """A file, or several files together, with the hash that was recorded, and what to do if it differs now.

    `actual` makes the hash of several files from a function that gives the hash of each.
    """

    path: Path
    hash: str
    remedy: str
    algorithm: str = "sha256"
    files: tuple[Path, ...] = ()
    actual: Callable[[Callable[[Path], str]], str] | None = None
    problem: str = "not what was written"
    remove: bool = False  # if it is damaged

    @property
    def read(self) -> tuple[Path, ...]:
        return self.files or (self.path,)


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written."""

    path: Path
    problem: str
    remedy: str
    remove: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


Found = Iterator[Recorded | Damage]


def raw_text() -> Found:
    """The text of each dataset, as its own manifest and those of its shards record it."""
    for spec_file in sorted(DATA.glob("*/dataset.yaml")):
        dataset, raw = spec_file.parent.name, spec_file.parent / "raw"
        try:
            load_spec(dataset)
        except UserError as error:
            yield Damage(spec_file, str(error).removeprefix(f"{spec_file}: "), "restore it from a copy")
        if (raw / MANIFEST_FILE).exists():  # else its user put the text there
            yield from _folder(raw, _again("download", dataset))
        yield from _source_of_shards(raw)


def _source_of_shards(raw: Path) -> Found:
    """The text in `raw` as a whole, as the manifests of the shards beside it record it."""
    ids = tuple(raw / name for name in IDS_FILES)
    try:
        files = ids if all(path.exists() for path in ids) else tuple(corpus_files(raw))
    except UserError:  # there is no text; its shards may have been copied here alone
        return
    for folder in _token_folders(raw.parent):
        try:
            source = load_manifest(folder).source_sha256
        except UserError:  # `shards` reports it
            continue
        yield Recorded(
            raw,
            source,
            f"{_again('download', raw.parent.name)}; if the text was meant to change, `dvc repro tokenize`",
            files=files,
            actual=partial(fingerprint, files),
            problem=f"not the text that {folder} was made from",
        )


def shards() -> Found:
    """Shards and tokenizers, by the manifest beside them."""
    for folder in (folder for dataset in sorted(DATA.glob("*")) for folder in _token_folders(dataset)):
        remedy = _again("tokenize", folder.parent.name, folder.name)
        try:
            manifest = load_manifest(folder)
        except UserError:
            yield Damage(folder / MANIFEST_FILE, "not a manifest", remedy)
            continue
        for shard in (*manifest.train.shards, *manifest.val.shards):
            yield Recorded(folder / shard.name, shard.sha256, remedy)
        yield Recorded(folder / TOKENIZER_FILE, manifest.tokenizer_sha256, remedy)


def checkpoints() -> Found:
    """Checkpoints, best models, settings and final metrics of every run, by their manifests."""
    for run in sorted(runs_folder().glob("*/")):
        start_over = f"restore it from a copy, or move {run} away to train from the start"
        for folder in checkpoints_in(run):
            yield from _folder(folder, f"training continues from another whole checkpoint; or {start_over}")
        if (run / "best").is_dir():
            yield from _folder(run / "best", start_over)
        if (run / RUN_FILE).exists():
            yield _checked_json(run / RUN_FILE, start_over)
        if (run / "finished").is_dir():
            yield from _folder(run / "finished", "the next training makes it again from the last checkpoint")
            yield from _tables(run)
        if (run / LATER_FILE).exists():
            yield _checked_json(
                run / LATER_FILE, "remove it; `dvc repro -f sample depth_curve` makes it again"
            )


def _tables(run: Path) -> Found:
    """The log and the health of a finished run, which are no longer written to."""
    with suppress(OSError, ValueError):  # `_folder` reports it
        recorded = read_manifest(run / "finished")
        for name in {LOG_FILE, HEALTH_FILE} & recorded.keys():
            yield Recorded(run / name, recorded[name], f"`cp {run / 'finished' / name} {run}`")


def models() -> Found:
    """Models and exports in results/ and saved/, by the manifest beside them."""
    for manifest in sorted((*RESULTS.glob(f"*/{MANIFEST_FILE}"), *SAVED.glob(f"*/{MANIFEST_FILE}"))):
        folder = manifest.parent
        if folder.suffix not in UNFINISHED:
            remedy = PUBLISH if folder == MODEL else "restore it from a copy, or import or export it again"
            yield from _folder(folder, remedy, leave_out=(CARD,))


def results_of_the_run() -> Found:
    """What the train stage published, as its run.json records it."""
    if not RECORD.exists():
        return
    yield _checked_json(RECORD, PUBLISH)
    with suppress(UserError):  # `_checked_json` reports it
        for name, sha256 in read_checked_json(RECORD, PUBLISH)["files"].items():
            yield Recorded(Path(name), str(sha256), PUBLISH)


def evaluations() -> Found:
    """The figures of baselines, other models and zero-shot tasks, which have their own checksums."""
    for folder in (BASELINES, PRETRAINED, ZEROSHOT):
        for path in sorted(folder.rglob("*.json")):
            yield _checked_json(path, f"`rm {shlex.quote(str(path))}`, and evaluate it again")


def scaling() -> Found:
    """The fit of a scaling law, with the runs and the picture that it records."""
    remedy = "`gpt-pipeline scaling` with the same options makes it again; what was trained is kept"
    if SCALING.exists():
        yield _checked_json(SCALING, remedy)
        with suppress(UserError):  # `_checked_json` reports it
            for name, sha256 in read_checked_json(SCALING, remedy)["files"].items():
                yield Recorded(Path(name), str(sha256), remedy)


def outputs() -> Found:
    """The outputs of every stage, as dvc.lock records them.

    What is not there at all is not damaged: `dvc repro` makes it.
    """
    problem = "not what dvc.lock records, by damage or because a stage was run by hand"
    for lock in filter(Path.exists, LOCKS):
        try:
            for path, md5, stage in locked_outputs(lock):
                if md5 and path.is_file():
                    remedy = f"`dvc repro -f -s {shlex.quote(stage)}`"
                    yield Recorded(path, md5, remedy, "md5", problem=problem)
        except UserError as error:
            problem = str(error).removeprefix(f"{lock}: ")
            yield Damage(lock, problem, "restore it, or remove it and `dvc repro`")


def cache() -> Found:
    """The objects in DVC's cache: the name of each is the md5 of its content."""
    names: dict[str, Path] = {}
    for lock in filter(Path.exists, LOCKS):
        with suppress(UserError):  # `outputs` reports it
            names |= {out.md5.removesuffix(".dir"): out.path for out in locked_outputs(lock)}
    for path, md5 in objects():
        problem = f"not what was written; it was {names.get(md5, 'an earlier result')}"
        remedy = f"set aside in {SET_ASIDE}, so that DVC never uses it"
        yield Recorded(path, md5, remedy, "md5", problem=problem, remove=True)


# What is looked at: each entry finds the files of one kind, with the hashes that were recorded for them. Of
# two that know a file, the first judges it. For a new file format, add a function like those above.
KINDS: dict[str, Callable[[], Found]] = {
    "raw text": raw_text,
    "shards, tokenizers": shards,
    "checkpoints": checkpoints,
    "models, exports": models,
    "results/run.json": results_of_the_run,
    "evaluations": evaluations,
    "scaling law": scaling,
    "dvc.lock": outputs,
    "DVC's cache": cache,
}


def _folder(folder: Path, remedy: str, leave_out: Collection[str] = ()) -> Found:
    """The files of a folder that `save_folder` wrote."""
    try:
        checksums = read_manifest(folder)
    except (OSError, ValueError):
        if folder.exists():
            yield Damage(folder / MANIFEST_FILE, "missing or damaged", remedy)
        return
    for name, sha256 in checksums.items():
        if name not in leave_out:
            yield Recorded(folder / name, sha256, remedy)


def _checked_json(path: Path, remedy: str) -> Recorded | Damage:
    """A JSON file that `write_checked_json` wrote."""
    try:
        values = read_checked_json(path, remedy)
    except UserError as error:
        return Damage(path, str(error).removeprefix(f"{path}: ").removesuffix(f"; {remedy}"), remedy)
    return Recorded(path, checksum(values), remedy, actual=lambda _: checksum(values))


def _token_folders(dataset: Path) -> list[Path]:
    """The folders of shards of a dataset."""
    folders = [path.parent for path in sorted(dataset.glob(f"*/{MANIFEST_FILE}"))]
    return [folder for folder in folders if folder.name != "raw" and folder.suffix not in UNFINISHED]


def _again(stage: str, dataset: str, tokenizer: str | None = None) -> str:
    parameters = f"data.dataset = {dataset}" + (f" and tokenizer.name = {tokenizer}" if tokenizer else "")
    return f"`dvc repro -f -s {stage}` with {parameters} writes it again"
