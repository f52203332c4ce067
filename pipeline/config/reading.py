"""Read files that users touch, as text, JSON or YAML. Whatever is wrong with such a file is a UserError."""

from __future__ import annotations

import json
import stat
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
from ruamel.yaml.events import AliasEvent

from pipeline.config.errors import UserError

LARGEST = 1 << 28  # bytes of a file that is read as a whole
OTHER_FILE = "name another file"
TOO_DEEP = "nested too deep; flatten it"


def check_file(path: Path, missing: str = OTHER_FILE) -> int:
    """The size of a regular file in bytes. Raises UserError; `missing` is the remedy if there is none.

    A FIFO or a device is refused, because reading it may never end.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; {missing}") from None
    except ValueError:  # a NUL character in the name
        raise UserError(f"{str(path)!r}: not a file's name; {OTHER_FILE}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {OTHER_FILE}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file; copy its content into one")
    return status.st_size


def read_text(
    path: Path, missing: str = OTHER_FILE, remedy: str = "save it as UTF-8", largest: int = LARGEST
) -> str:
    """The text of a UTF-8 file of at most `largest` bytes. Raises UserError as `check_file` does.

    `remedy` is that for other bytes than UTF-8.
    """
    size = check_file(path, missing)
    if size > largest:
        raise UserError(f"{path}: {size:,} bytes are more than the {largest:,} that are read; shorten it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {OTHER_FILE}") from None


def parse_json(text: str) -> Any:
    """The value that JSON stands for. Raises UserError, without the file's name, if it is invalid."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(TOO_DEEP) from None
    except ValueError as error:
        raise UserError(f"not JSON: {error}") from None


def read_json(path: Path, missing: str = OTHER_FILE, remedy: str = "copy it again") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for anything else; `remedy` is that of a damaged file."""
    return parse_object(read_text(path, missing, remedy), path, remedy)


def parse_object(text: str, where: str | Path, remedy: str) -> dict[str, Any]:
    """The object that JSON stands for. Raises UserError, which begins with `where`, for anything else."""
    try:
        values = parse_json(text)
    except UserError as error:
        raise UserError(f"{where}: {error}; {remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; {remedy}")
    return values


def parse_yaml(text: str) -> Any:
    """The value that YAML 1.2 stands for. Raises UserError, without the file's name, if it is invalid.

    Aliases are refused: a few lines with aliases of aliases stand for more than fits into memory.
    """
    yaml = YAML(typ="safe")
    yaml.Composer = _WithoutAliases
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # without aliases, names do not matter
            return yaml.load(text)
    except RecursionError:
        raise UserError(TOO_DEEP) from None
    except UserError:
        raise
    except (YAMLError, ValueError) as error:  # ValueError for a date or a number that cannot be
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except (KeyError, AttributeError, TypeError, IndexError):  # from the library, for `!!bool perhaps`
        raise UserError("not valid YAML: a value does not fit its tag, such as !!bool; correct it") from None


class _WithoutAliases(Composer):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            event = self.parser.peek_event()
            raise UserError(
                f"line {event.start_mark.line + 1}: *{event.anchor} is an alias; write the value out"
            )
        return super().compose_node(parent, index)
