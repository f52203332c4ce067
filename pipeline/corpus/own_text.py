"""Describes the user's own text as a dataset.yaml: which files, where their text is, how it is split."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

from pipeline.config.errors import UserError, without_passwords
from pipeline.corpus.distinct import Distinct
from pipeline.corpus.fetch import download_folder, downloaded, fetch_unknown, is_html, last_part
from pipeline.corpus.formats import (
    PACKED,
    check_encoding,
    find_encoding,
    is_known,
    is_wanted,
    read_parts,
)
from pipeline.corpus.hub_datasets import find_commit
from pipeline.corpus.progress import counted, progress
from pipeline.corpus.sources import (
    IDS_FILES,
    META_FILE,
    SPLIT_SEED,
    DatasetSpec,
    DocumentSplit,
    FilesSource,
    GivenSplit,
    HuggingFaceSource,
    NanoGPTSource,
    TailSplit,
    UserFile,
    is_url,
    safe_name,
)
from pipeline.storage.checksums import sha256_file

FEW_DOCUMENTS = 100
HUB = "hf:"
HUB_NAME = re.compile(r"hf:(?P<repository>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")
VALIDATION = 0.1  # of the text
SHOWN = 10  # files that cannot be read


def spec_for_hub(text: str, text_column: str = "text") -> DatasetSpec:
    """Return a dataset.yaml for `hf:user/name`, a data set on the Hugging Face hub, as it is there now.

    `hf:user/name:config` names one of its configurations, `hf:user/name@revision` a branch, tag or commit. It
    is the split `train`. Raises UserError if there is no such text, or the hub cannot be reached.
    """
    found = HUB_NAME.fullmatch(text)
    if found is None:
        raise UserError(
            f"TEXT={text}: no name on the hub; write hf:user/name, hf:user/name:config, or with @revision"
        )
    repository, config, revision = found["repository"], found["config"], found["revision"] or "main"
    commit = find_commit(repository, config, "train", revision, text_column)
    source = HuggingFaceSource(
        kind="huggingface",
        repository=repository,
        config=config,
        split="train",
        revision=commit,
        text_column=text_column,
    )
    return _spec(text, source, by_document=True)


def spec_for_text(
    text: str, text_column: str = "text", skip_bad: bool = False, encoding: str | None = None
) -> DatasetSpec:
    """Read the files at a path, in a folder, that a glob matches or at a URL; return a dataset.yaml.

    `text_column` is the field or column with the text, in files that have such. FEW_DOCUMENTS documents or
    more are split by document, fewer at the tail of the text. Raises UserError if no file matches, and for
    an unknown kind of file, an empty file or text that cannot be read; with `skip_bad`, such files are left
    out, and a line on stderr says so. Text that is not UTF-8 is in `encoding`, or in the one that is found;
    then a line on stderr says which.
    """
    if encoding is not None:
        check_encoding(encoding)
    paths = [_downloaded(text)] if is_url(text) else files_of(text)
    not_empty = [path for path in paths if path.stat().st_size or not path.is_file()]
    files, distinct, problems = _read(not_empty or paths, text_column, encoding)
    if problems and not (skip_bad and files):
        raise UserError(_all_of(problems, len(files)))
    if problems:
        all_files = counted(len(files) + len(problems), "file")
        print(f"left out {len(problems):,} of {all_files}: {_some(problems)}", file=sys.stderr)
        # Counted again, because what was read of the bad files is not left out of the counts.
        distinct = Distinct()
        for file in files:
            _count(Path(file.path), text_column, file.encoding, distinct, lambda _: None)
    distinct.empty += len(paths) - len(not_empty)
    by_document = distinct.documents >= FEW_DOCUMENTS
    print(_summary(len(files), distinct, by_document))
    if is_url(text):
        (path,) = paths
        name = None if path.name == last_part(text) else path.name
        update = {"path": without_passwords(text), "name": name}
        files = [file.model_copy(update=update) for file in files]
    source = FilesSource(kind="files", paths=files, text_column=text_column, characters=distinct.characters)
    return _spec(text, source, by_document)


def _spec(text: str, source: FilesSource | HuggingFaceSource, by_document: bool) -> DatasetSpec:
    return DatasetSpec(
        description=f"made by `make train-on` from {without_passwords(text)}",
        source=source,
        split=DocumentSplit(by="documents", fraction=VALIDATION, seed=SPLIT_SEED)
        if by_document
        else TailSplit(by="tail", fraction=VALIDATION),
    )


def _downloaded(url: str) -> Path:
    """The file at a URL. Raises UserError if it cannot be had, or is of no known kind."""
    folder = download_folder(url)
    if (earlier := downloaded(folder)) is not None:
        print(f"{earlier}: downloaded before; to do it again, remove it")
    path = fetch_unknown(url, folder, _with_known_ending)
    if not is_known(path.name):
        path.unlink()
        raise _unknown_kind(f"TEXT={url}", path)
    return path


def _unknown_kind(where: str, path: Path) -> UserError:
    kind = path.suffix or "(no extension)"
    return UserError(f"{where}: unknown file type {kind}; docs/guide.md lists those that can be read")


def _with_known_ending(name: str, path: Path) -> str:
    """`name`, or one that says what the file at `path` is: a page, or text."""
    if is_known(name):
        return name
    if is_html(path):
        return f"{name}.html"
    with path.open("rb") as file:
        return name if b"\0" in file.read(1 << 12) else f"{name}.txt"


def _read(
    paths: Sequence[Path], text_column: str, encoding: str | None
) -> tuple[list[UserFile], Distinct, list[str]]:
    """Read all files: those that can be read, the counts of their documents, what is wrong with others."""
    files, distinct, problems = list[UserFile](), Distinct(), list[str]()
    with progress("read", "B", sum(path.stat().st_size for path in paths)) as advance:
        for path in paths:
            try:
                found = encoding or find_encoding(path)
                _count(path, text_column, found, distinct, advance)
                files.append(_hashed(path, found))
                if found and not encoding:
                    print(f"{path}: not UTF-8; read as {found} (another: ENCODING=...)", file=sys.stderr)
            except UserError as error:
                problems.append(str(error))
    return files, distinct, problems


def _count(
    path: Path, text_column: str, encoding: str | None, distinct: Distinct, advance: Callable[[int], None]
) -> None:
    """Count the documents of a file. Raises UserError if it has none with text, or cannot be read."""
    texts = distinct.documents + distinct.duplicates
    for _, documents in read_parts(path, text_column, encoding, advance):
        for document in documents:
            distinct.is_new(document)
    if distinct.documents + distinct.duplicates == texts:
        raise UserError(f"{path}: no documents; put text into it or leave it out")


def _summary(files: int, distinct: Distinct, by_document: bool) -> str:
    """How much text there is, in one or two lines."""
    documents, characters = distinct.documents, distinct.characters
    lengths = (
        f"; the shortest document has {distinct.shortest:,}, the longest {distinct.longest:,}"
        if documents > 1
        else ""
    )
    validation = (
        f"{ceil(VALIDATION * documents):,} documents, drawn at random"
        if by_document
        else f"the last {characters - int(characters * (1 - VALIDATION)):,} characters"
    )
    left_out = f"\n{distinct.left_out()}" if distinct.left_out() else ""
    return (
        f"{counted(files, 'file')}, {counted(documents, 'document')}, {characters:,} characters{lengths}"
        f"{left_out}\nfor validation: {validation}"
    )


def _all_of(problems: list[str], good: int) -> str:
    """One line for all files that cannot be read."""
    if len(problems) == 1 and not good:
        return problems[0]
    what = f"{len(problems):,} of {counted(len(problems) + good, 'file')} cannot be read"
    return f"{what}: {_some(problems)}. Correct them, or leave them out: SKIP_BAD=1 (--skip-bad)"


def _some(problems: list[str]) -> str:
    more = f" (and {len(problems) - SHOWN:,} more)" if len(problems) > SHOWN else ""
    return " | ".join(problems[:SHOWN]) + more


def is_hub_name(text: str) -> bool:
    return text.startswith(HUB)


def holds_ids(folder: Path) -> bool:
    """Whether `folder` has the train.bin and val.bin that nanoGPT's prepare.py writes."""
    return all((folder / name).is_file() for name in IDS_FILES)


def spec_for_nanogpt(folder: Path) -> DatasetSpec:
    """Return a dataset.yaml for nanoGPT's train.bin, val.bin and, if there is one, meta.pkl in `folder`."""
    train, val, meta = (folder.absolute() / name for name in (*IDS_FILES, META_FILE))
    return DatasetSpec(
        description=f"made by `make train-on` from {folder}",
        source=NanoGPTSource(
            kind="nanogpt",
            train=_hashed(train),
            val=_hashed(val),
            meta=_hashed(meta) if meta.exists() else None,
        ),
        split=GivenSplit(by="source"),
    )


def dataset_name(pattern: str) -> str:
    """A folder name: `My-Books` for `My Books/*.txt`, `emma` for `emma.txt`, `name` for `hf:user/name`."""
    if is_hub_name(pattern):
        return safe_name(re.split("[@:]", pattern.removeprefix(HUB).rpartition("/")[2])[0])
    if is_url(pattern):
        pattern = last_part(pattern)
    plain = [part for part in Path(pattern).expanduser().absolute().parts if not glob.has_magic(part)]
    last = Path(plain[-1])
    while is_known(last.name) or last.suffix.lower() in PACKED:
        last = last.with_suffix("")
    return safe_name(last.name)


def files_of(text: str) -> list[Path]:
    """The files at a path, in a folder at any depth, or that a glob such as `notes/**/*.{txt,md}` matches.

    Of a folder, hidden files and those of unknown kinds are left out. Raises UserError if there is no file,
    and for one of an unknown kind that the user named.
    """
    expanded = os.path.expanduser(text)
    if os.path.isdir(expanded):
        folder = Path(expanded).absolute()
        inside = (path for path in folder.rglob("*") if is_wanted(path.relative_to(folder).as_posix()))
        paths = sorted(path for path in inside if path.is_file())
        if not paths:
            raise UserError(f"TEXT={text}: no text in this folder; name files, or another folder")
        return paths
    try:
        exists = os.path.exists(expanded)
        found = (
            [expanded]
            if exists
            else [path for one in _braces(expanded) for path in glob.glob(one, recursive=True)]
        )
    except ValueError:  # a NUL character
        found = []
    paths = sorted({Path(path).absolute() for path in found if not os.path.isdir(path)})
    if not paths:
        raise UserError(
            f"TEXT={text}: no such file; a glob needs quotes: TEXT='texts/*.txt', and several texts braces: "
            "TEXT='{one,two}.txt'"
        )
    for path in paths:
        if not is_known(path.name):
            raise _unknown_kind(str(path), path)
    return paths


def _braces(pattern: str) -> list[str]:
    """Every pattern that one with `{a,b}` stands for, as in a shell."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)  # an innermost pair
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in found[1].split(",") for one in _braces(before + choice + after)]


def _hashed(path: Path, encoding: str | None = None) -> UserFile:
    """A file by its path, relative to the project if it is in it, so that the project can be moved."""
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return UserFile(path=str(shown), sha256=sha256_file(path), encoding=encoding)
