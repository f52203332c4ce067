"""Typed, frozen sections for YAML files, and one-line errors for invalid values."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config.errors import UserError
from pipeline.config.reading import parse_yaml, read_text


class Section(BaseModel):
    """A mapping in a YAML file. Unknown keys and wrong types are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_into_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{_SHORT.repr(value)} needs more than 64 bits; write a smaller number")
        return value


COMMIT = re.compile(r"[0-9a-f]{40}")  # the name of a commit on the hub, whose content never changes
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Short(reprlib.Repr):
    """A value in an error message, cut to what fits on a line."""

    def repr_int(self, x: int, level: int) -> str:
        # Python writes no number of more than 4,300 digits.
        return repr(x) if x.bit_length() < 128 else f"about {'-' * (x < 0)}2**{x.bit_length() - 1}"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 120, 120

SectionType = TypeVar("SectionType", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file. Raises UserError if the file is missing or holds no mapping."""
    text = read_text(path, missing="run from the project's folder")
    try:
        values = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def validate(section: type[SectionType], values: Any, source: str | Path) -> SectionType:
    """`values` as a `section`. Raises UserError naming `source`, the first wrong field and a remedy."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, *others = in_order(error)
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{source}: {_explain(first, section)}{more}") from None


def in_order(error: ValidationError) -> list[Any]:
    """What is wrong. Unknown names come first: they are often misspellings of what is reported as missing."""
    return sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")


def known_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted name that may be in a file with this section."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_names(field.annotation, f"{prefix}{name}.")


def suggest(name: str, known: list[str]) -> str:
    """`; did you mean ...?` for the known name nearest to `name`, or nothing."""
    leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        leaves[leaf]
        for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
    ]
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: Any, section: type[Section]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {name}{suggest(name, list(known_names(section)))}"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "value_error":  # from one of our validators, whose message is complete
        return ": ".join(part for part in (name, str(error["ctx"]["error"])) if part)
    message = error["msg"].removeprefix("Input ")
    return f"{name} = {_SHORT.repr(value)}: {message}"
