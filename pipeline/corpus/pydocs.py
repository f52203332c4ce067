"""The built-in corpus: Python's language reference and the docstrings of its standard library.

Both are read from the source files of the running interpreter with `ast`: nothing is imported or executed.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.errors import UserError

# `encodings` is mostly generated tables, with hundreds of copies of one docstring.
SKIPPED = {"test", "tests", "idle_test", "idlelib", "turtledemo", "encodings", "pydoc_data"}

REMEDY = "install a complete Python (on Debian and Ubuntu: apt install python3-full)"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents(stdlib: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each topic of the language reference, then of each module, both sorted by name.

    `stdlib` is the folder of the standard library, by default the running interpreter's. A module that
    cannot be read or parsed, or that has no docstring, is left out. Raises UserError if the interpreter
    has no topics or no sources.
    """
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    topics = {
        f"topic {name}": _clean(text) for name, text in _topics(root / "pydoc_data" / "topics.py").items()
    }
    yield from sorted(_without_excerpts(topics).items())
    modules = sorted(_modules(root))
    if not modules:
        raise UserError(f"{root}: no standard library sources for {sys.executable}; {REMEDY}")
    yield from modules


def _topics(path: Path) -> dict[str, str]:
    tree = _parse(path)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            topics = ast.literal_eval(node.value)
            return {str(name): str(text) for name, text in topics.items()}
    raise UserError(f"{path}: no language reference for {sys.executable}; {REMEDY}")


def _without_excerpts(topics: dict[str, str]) -> dict[str, str]:
    """Leave out topics whose text is part of another topic: no text may be in both train and val."""
    kept: dict[str, str] = {}
    for name, text in sorted(topics.items(), key=lambda topic: (-len(topic[1]), topic[0])):
        # Compare without the heading, which may be of another level in an excerpt.
        body = text.partition("\n\n")[2].strip() or text.strip()
        if not any(body in longer for longer in kept.values()):
            kept[name] = text
    return kept


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        tree = _parse(path)
        sections = [section for section in _sections(tree, "") if section] if tree else []
        if sections:
            yield name, _clean("\n\n".join([f"{name}\n{'=' * len(name)}", *sections]))


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
