"""The files generated from the typed sections: params.yaml, its JSON schema and docs/parameters.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.model import HEADINGS, Model
from pipeline.config.params import Params

SCHEMA_FILE = Path("presets/params.schema.json")
PARAMETERS_FILE = Path("docs/parameters.md")
COMMENT_COLUMN = 36
NEEDS = {"loops": "sharing or recurrence"}  # how to write a need that is not a single field

ABOUT = """\
# Every parameter of the pipeline. Change a value and run `dvc repro`: stages that depend on it run again, and
# the other results are reused. `make preset-<name>` puts a preset's values here; `make presets` lists the
# presets. The comments are generated from pipeline/config/; the layout is that of `dvc exp run -S`.
"""


def params_yaml(params: Params, title: str) -> str:
    """The text of params.yaml: each value with a comment that explains it."""
    schema = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    return f"{schema}# {title}\n#\n{ABOUT}" + "".join(
        f"\n{name}:  # {_about(section)}\n" + "".join(_lines(section, getattr(params, name)))
        for name, section in _sections()
    )


def json_schema() -> str:
    """The JSON schema of params.yaml, with which editors complete and check the file."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Params.model_json_schema(), indent=2, sort_keys=True) + "\n"


def parameters_md(default: Params) -> str:
    """The text of docs/parameters.md: a table for each section, with the values of presets/default.yaml."""
    parts = [
        "# Parameters",
        "Everything in `params.yaml`, with the values of `presets/default.yaml`. `make generate` "
        "writes this page from\n`pipeline/config/`. Override one for one command with "
        "`-S section.key=value`, for one experiment with\n`dvc exp run -S section.key=value`.",
    ]
    for name, section in _sections():
        about = _about(section)
        parts.append(f"## `{name}`\n\n{about[0].upper()}{about[1:]}.")
        if section is not Model:
            parts.append(_table(section, getattr(default, name), list(section.model_fields)))
            continue
        parts.append(
            "Every switch is off by default; [the model family](model-family.md) explains what they do "
            "together. The columns:\n\n"
            "- *needs*: what has to be on for the parameter to have an effect. If it is off, a value other "
            "than the default is an\n  error, except where the need is in parentheses.\n"
            "- *GPT-2*: *no* means that a model with another value than the default cannot be exported to "
            "GPT-2's format.\n"
            "- *finetuning*: *free* means that the value may differ from that of the model that training "
            "starts from."
        )
        for heading, names in _groups():
            parts.append(f"### {heading[0].upper()}{heading[1:]}")
            parts.append(_model_table(default.model, names))
    return "\n\n".join(parts) + "\n"


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
        return json.dumps(value, ensure_ascii=False)
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


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Params.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        yield name, section


def _about(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _groups() -> Iterator[tuple[str, list[str]]]:
    """Yield each heading of the `model` section with the names of the fields below it."""
    groups: dict[str, list[str]] = {"shape": []}
    heading = "shape"
    for name in Model.model_fields:
        heading = HEADINGS.get(name, heading)
        groups.setdefault(heading, []).append(name)
    yield from groups.items()


def _table(section: type[BaseModel], values: BaseModel, names: list[str]) -> str:
    rows = [
        f"| `{name}` | {_shown(getattr(values, name))} | {section.model_fields[name].description} |"
        for name in names
    ]
    return "\n".join(["| key | default | |", "| --- | --- | --- |", *rows])


def _model_table(values: Model, names: list[str]) -> str:
    rows = []
    for name in names:
        field: FieldInfo = Model.model_fields[name]
        facts = Model.facts(name)
        needs = "" if not facts.needs else NEEDS.get(facts.needs, f"`{facts.needs}`")
        in_gpt2 = facts.in_gpt2 and (
            facts.needs not in Model.model_fields or Model.facts(facts.needs).in_gpt2
        )
        cells = (
            f"`{name}`",
            _shown(getattr(values, name)),
            field.description,
            f"({needs})" if facts.may_stay else needs,
            "" if in_gpt2 else "no",
            "" if facts.changes_weights else "free",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    header = "| key | default | | needs | GPT-2 | finetuning |"
    return "\n".join([header, "| --- | --- | --- | --- | --- | --- |", *rows])


def _shown(value: Any) -> str:
    text = yaml_value(value)
    return f"`{text}`" if text else ""
