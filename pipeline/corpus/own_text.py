"""Describes the user's own text as a dataset.yaml: which files, where their text is, how it is split."""

from __future__ import annotations

import glob
import os
import re
import sys
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.corpus.documents import PIECE_CHARS
from pipeline.corpus.formats import (
    PACKED,
    check_encoding,
    find_encoding,
    is_known,
    is_wanted,
    named,
    read_user_file,
    unpacked,
)
from pipeline.corpus.sources import (
    IDS_FILES,
    META_FILE,
    SPLIT_SEED,
    DatasetSpec,
    DocumentSplit,
    FilesSource,
    GivenSplit,
    NanoGPTSource,
    TailSplit,
    UserFile,
    safe_name,
)
from pipeline.storage.checksums import sha256_file

FEW_DOCUMENTS = 100
SHOWN = 10  # files that cannot be read


def spec_for_text(
    text: str, text_column: str = "text", skip_bad: bool = False, encoding: str | None = None
) -> DatasetSpec:
    """Read the files at a path, in a folder or that a glob matches, and return a dataset.yaml for them.

    `text_column` is the field or column with the text, in files that have such. FEW_DOCUMENTS documents or
    more are split by document, fewer at the tail of the text. Raises UserError if no file matches, and for
    an unknown kind of file, an empty file or text that cannot be read; with `skip_bad`, such files are left
    out, and a line on stderr says so. Text that is not UTF-8 is in `encoding`, or in the one that is found;
    then a line on stderr says which.
    """
    if encoding is not None:
        check_encoding(encoding)
    files, lengths, problems = [], list[int](), list[str]()
    paths = files_of(text)
    not_empty = [path for path in paths if path.stat().st_size or not path.is_file()]
    for path in not_empty or paths:
        try:
            found = encoding or find_encoding(path)
            lengths += _lengths(path, text_column, found)
            files.append(_hashed(path, found))
            if found and not encoding:
                print(f"{path}: not UTF-8; read as {found} (another: ENCODING=...)", file=sys.stderr)
        except UserError as error:
            problems.append(str(error))
    if problems and not (skip_bad and files):
        raise UserError(_all_of(problems, len(files)))
    if problems:
        print(
            f"left out {len(problems):,} of {len(files) + len(problems):,} files: {_some(problems)}",
            file=sys.stderr,
        )
    many = len(lengths) >= FEW_DOCUMENTS
    amount = f"{len(files):,} files, {len(lengths):,} documents, {sum(lengths):,} characters"
    extremes = f"the shortest document has {min(lengths):,}, the longest {max(lengths):,}"
    empty = len(paths) - len(not_empty)
    left_out = f"; {empty:,} empty files are left out" if empty else ""
    print(f"{amount}; {extremes}{left_out}")
    return DatasetSpec(
        description=f"made by `make train-on` from {text}",
        source=FilesSource(kind="files", paths=files, text_column=text_column),
        split=DocumentSplit(by="documents", fraction=0.1, seed=SPLIT_SEED)
        if many
        else TailSplit(by="tail", fraction=0.1),
    )


def _lengths(path: Path, text_column: str, encoding: str | None) -> list[int]:
    """The characters of each document in a file. Raises UserError if it has none, or cannot be read."""
    lengths, length = list[int](), 0
    with unpacked(path, encoding) as parts:
        for plain, shown in parts:
            with named(plain, shown):
                for text, last in read_user_file(plain, text_column, PIECE_CHARS):
                    length += len(text)
                    if last:
                        lengths.append(length)
                        length = 0
    if not lengths:
        raise UserError(f"{path}: no documents; put text into it or leave it out")
    return lengths


def _all_of(problems: list[str], good: int) -> str:
    """One line for all files that cannot be read."""
    if len(problems) == 1 and not good:
        return problems[0]
    what = f"{len(problems):,} of {len(problems) + good:,} files cannot be read"
    return f"{what}: {_some(problems)}. Correct them, or leave them out: SKIP_BAD=1 (--skip-bad)"


def _some(problems: list[str]) -> str:
    more = f" (and {len(problems) - SHOWN:,} more)" if len(problems) > SHOWN else ""
    return " | ".join(problems[:SHOWN]) + more


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
    """A folder name for the text at a path or glob: `My Books/*.txt` is `My-Books`, `emma.txt` is `emma`."""
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
        raise UserError(f"TEXT={text}: no such file; a glob needs quotes: TEXT='texts/*.txt'")
    for path in paths:
        if not is_known(path.name):
            kind = path.suffix or "(no extension)"
            raise UserError(f"{path}: unknown file type {kind}; docs/guide.md lists those that can be read")
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
