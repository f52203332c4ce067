"""The files generated from the typed sections: params.yaml and its JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.model import HEADINGS, Model
from pipeline.config.params import Params

SCHEMA_FILE = Path("presets/params.schema.json")
COMMENT_COLUMN = 36
# What JSON has as it is, but YAML only as an escape.
NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

ABOUT = """\
# Every parameter of the pipeline. Change a value and run `dvc repro`: stages that depend on it run again, and
# the other results are reused. `make preset-<name>` puts a preset's values here; `make presets` lists the
# presets. The comments are generated from pipeline/config/; the layout is that of `dvc exp run -S`.
"""


def params_yaml(params: Params, title: str) -> str:
    """The text of params.yaml: each value with a comment that explains it."""
    schema = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    return f"{schema}# {title}\n#\n{ABOUT}" + "".join(
        f"\n{name}:  # {about(section)}\n" + "".join(_lines(section, getattr(params, name)))
        for name, section in sections()
    )


def json_schema() -> str:
    """The JSON schema of params.yaml, with which editors complete and check the file."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Params.model_json_schema(), indent=2, sort_keys=True) + "\n"


def yaml_value(value: Any) -> str:
    """A parameter's value as YAML on one line; empty for None, in brackets for a list."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _yaml_float(value)
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, str) and not _is_plain(value):
        return NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return str(value)


def _yaml_float(value: float) -> str:
    """A float as YAML, always with a dot: PyYAML, and so DVC, would read 1e-3 as text."""
    if value == 0 or 0.01 <= abs(value) < 1e15:
        return repr(value)
    mantissa, _, exponent = f"{value:e}".partition("e")
    digits = mantissa.rstrip("0")
    short = f"{digits}0" if digits.endswith(".") else digits
    written = f"{short}e{int(exponent):+}"
    return written if float(written) == value else repr(value)


def _is_plain(text: str) -> bool:
    """Whether YAML reads `text` without quotes as the same string."""
    words = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    return re.fullmatch(r"[A-Za-z][\w./@-]*", text) is not None and text.lower() not in words


def _lines(section: type[BaseModel], values: BaseModel) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if section is Model and name in HEADINGS:
            yield f"  # {HEADINGS[name]}\n"
        value = getattr(values, name)
        items = value if isinstance(value, list) else []
        start = f"  {name}: {'' if items else yaml_value(value)}".rstrip()
        yield f"{start:<{COMMENT_COLUMN - 2}}  # {field.description}\n"
        yield from (f"  - {yaml_value(item)}\n" for item in items)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Params.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        yield name, section


def about(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0].rstrip(".")


def groups() -> Iterator[tuple[str, list[str]]]:
    """Yield each heading of the `model` section with the names of the fields below it."""
    groups: dict[str, list[str]] = {"shape": []}
    heading = "shape"
    for name in Model.model_fields:
        heading = HEADINGS.get(name, heading)
        groups.setdefault(heading, []).append(name)
    yield from groups.items()
