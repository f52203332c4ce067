"""The built-in corpora: Python's documentation, and the source code of its standard library.

Both are read from the source files of the running interpreter: nothing is imported or executed.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config.errors import UserError

# `encodings` is mostly generated tables, with hundreds of copies of one docstring.
SKIPPED = {"test", "tests", "idle_test", "idlelib", "turtledemo", "encodings", "pydoc_data"}

PASSAGE = 100  # characters
HASH_BASE = np.uint64(0xD1342543DE82EF95)  # any large odd number

REMEDY = "install a complete Python (on Debian and Ubuntu: apt install python3-full)"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents(stdlib: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each topic of the language reference, then of each module, both sorted by name.

    No two documents share a passage of PASSAGE characters, in the text as it is, with blanks collapsed, or in
    words alone. So no split by documents has a text in both of its parts. A topic that is part of another is
    left out, and documents that still share a passage are joined into one.

    `stdlib` is the folder of the standard library, by default the running interpreter's. A module that
    cannot be read or parsed, or that has no docstring, is left out. Raises UserError if the interpreter
    has no topics or no sources.
    """
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    topics = {
        f"topic {name}": _clean(text) for name, text in _topics(root / "pydoc_data" / "topics.py").items()
    }
    modules = sorted(_modules(root))
    if not modules:
        raise UserError(f"{root}: no standard library sources for {sys.executable}; {REMEDY}")
    return _joined([*sorted(_without_excerpts(topics).items()), *modules])


def modules(stdlib: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, source code) of each module of the standard library, sorted by name.

    Modules that share a passage of PASSAGE characters are joined, as in `documents`. One that is not UTF-8 is
    left out. Raises UserError if the interpreter has no sources.
    """
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    found = []
    for path in _sources(root):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.append((_module_name(path, root), _clean(path.read_text(encoding="utf-8"))))
    if not found:
        raise UserError(f"{root}: no standard library sources for {sys.executable}; {REMEDY}")
    return _joined(sorted(found))


def _topics(path: Path) -> dict[str, str]:
    tree = _parse(path)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            topics = ast.literal_eval(node.value)
            return {str(name): str(text) for name, text in topics.items()}
    raise UserError(f"{path}: no language reference for {sys.executable}; {REMEDY}")


def _without_excerpts(topics: dict[str, str]) -> dict[str, str]:
    """Leave out topics whose words are part of another topic's."""
    kept: dict[str, str] = {}
    for name, text in sorted(topics.items(), key=lambda topic: (-len(topic[1]), topic[0])):
        words = _words(text)
        if not any(words in longer for longer in kept.values()):
            kept[name] = words
    return {name: topics[name] for name in kept}


def _joined(documents: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join all documents that share a passage, also by way of others, at the place of the first of them."""
    passages = [
        np.unique(np.concatenate([_passages(form) for form in (text, " ".join(text.split()), _words(text))]))
        for _, text in documents
    ]
    owner = np.repeat(np.arange(len(documents)), [len(keys) for keys in passages])
    keys = np.concatenate(passages)
    order = np.argsort(keys, kind="stable")
    repeats = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    group = np.arange(len(documents))
    for one, other in np.unique(owner[order[np.stack([repeats, repeats + 1])]], axis=1).T:
        low, high = sorted((group[one], group[other]))
        group[group == high] = low
    for first in np.unique(group):
        together = [documents[number] for number in np.flatnonzero(group == first)]
        yield " + ".join(name for name, _ in together), "\n".join(text for _, text in together)


def _passages(text: str) -> np.ndarray:
    """A hash, uint64, of every PASSAGE characters in a row; empty for a shorter text."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    keys = np.zeros(max(len(characters) - PASSAGE + 1, 0), dtype=np.uint64)
    for offset in range(PASSAGE):
        keys *= HASH_BASE  # modulo 2**64
        keys += characters[offset : offset + len(keys)]
    return keys


def _words(text: str) -> str:
    """The text without markup: excerpts underline their headings with other characters."""
    return re.sub(r"[\W_]+", " ", text).strip()


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in _sources(root):
        name = _module_name(path, root)
        tree = _parse(path)
        sections = [section for section in _sections(tree, "") if section] if tree else []
        if sections:
            yield name, _clean("\n\n".join([f"{name}\n{'=' * len(name)}", *sections]))


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        # Only packages: names such as site-packages and lib-dynload are not Python identifiers.
        subfolders[:] = [name for name in subfolders if name.isidentifier() and name not in SKIPPED]
        yield from (Path(folder, name) for name in files if name.endswith(".py") and name[:-3].isidentifier())


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _sections(node: ast.AST, prefix: str) -> Iterator[str]:
    """Yield the docstring of `node`, then those of the classes and functions in it, in source order."""
    if isinstance(node, Documented):
        docstring = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if isinstance(node, ast.Module):
            yield docstring
        elif docstring:
            indented = "".join(f"    {line}".rstrip() + "\n" for line in docstring.splitlines()).rstrip()
            yield f"{_heading(node, prefix)}\n{indented}"
    if isinstance(node, ast.ClassDef):
        prefix += f"{node.name}."
    # Functions and classes inside a function are private to it, so they are left out.
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from _sections(child, prefix)


def _heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {prefix}{node.name}" + (f"({bases})" if bases else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{prefix}{node.name}({ast.unparse(node.args)}){returns}"


def _clean(text: str) -> str:
    """Strip blanks from both ends, and replace lone surrogates, which UTF-8 cannot encode."""
    return text.strip().encode("utf-8", "replace").decode("utf-8") + "\n"
