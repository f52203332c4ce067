"""docs/parameters.md, generated from the typed sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.model import Model
from pipeline.config.params import Params
from pipeline.config.params_yaml import about, groups, sections, yaml_value
from pipeline.report.tables import markdown_table

PARAMETERS_FILE = Path("docs/parameters.md")
NEEDS = {"loops": "sharing or recurrence"}  # how to write a need that is not a single field

INTRODUCTION = """\
# Parameters

Everything in `params.yaml`, with the values of `presets/default.yaml`. `make generate` writes this page
from `pipeline/config/`. Override a parameter for one command with `-S section.key=value`, for one
experiment with `make experiment SET=section.key=value`."""

MODEL_INTRODUCTION = """\
With every switch off this is GPT-2, which is what the preset `nanogpt` has. The default turns on what pays
at its size; [the model family](model-family.md) explains what the switches do together. The columns:

- *needs*: what has to be on for the parameter to have an effect. If that is off, setting the parameter is an
  error, except where the need is in parentheses.
- *GPT-2*: *no* means that GPT-2 has no such part: a model that has it cannot be exported as GPT-2.
- *finetuning*: *free* means that the value may differ from that of the model that training starts from."""


def parameters_page(default: Params) -> str:
    """The text of docs/parameters.md: a table for each section, with the values of `default`."""
    parts = [INTRODUCTION]
    rows: list[tuple[str, ...]]
    for name, section in sections():
        text = about(section)
        parts.append(f"## `{name}`\n\n{text[0].upper()}{text[1:]}.")
        if section is not Model:
            values = getattr(default, name)
            rows = [
                (f"`{key}`", _shown(getattr(values, key)), field.description or "")
                for key, field in section.model_fields.items()
            ]
            parts.append(markdown_table([("key", "default", ""), *rows], "<<<", padded=False))
            continue
        parts.append(MODEL_INTRODUCTION)
        for heading, names in groups():
            rows = [_row(default.model, key) for key in names]
            header = ("key", "default", "", "needs", "GPT-2", "finetuning")
            parts.append(f"### {heading[0].upper()}{heading[1:]}")
            parts.append(markdown_table([header, *rows], "<<<<<<", padded=False))
    return "\n\n".join(parts) + "\n"


def _row(values: Model, name: str) -> tuple[str, ...]:
    facts = Model.facts(name)
    needs = "" if not facts.needs else NEEDS.get(facts.needs, f"`{facts.needs}`")
    in_gpt2 = facts.in_gpt2 and (facts.needs not in Model.model_fields or Model.facts(facts.needs).in_gpt2)
    return (
        f"`{name}`",
        _shown(getattr(values, name)),
        Model.model_fields[name].description or "",
        f"({needs})" if facts.may_stay else needs,
        "" if in_gpt2 else "no",
        "" if facts.changes_weights else "free",
    )


def _shown(value: Any) -> str:
    text = yaml_value(value)
    return f"`{text}`" if text else ""
