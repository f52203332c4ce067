"""Presets: overlays on presets/default.yaml, composed into params.yaml with its comments kept.

params.yaml is the only parameter file that the stages and DVC read. A preset replaces it as a whole,
and never silently: values edited by hand are only overwritten when forced.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, Params
from pipeline.config.validation import read_yaml, suggest, validate

FOLDER = Path("presets")
DEFAULT = "default"

# What commands set for the user, again and again, in params.yaml: no edits of the user's.
SET_BY_TRAIN_ON = ("data.dataset",)
SET_BY_FINETUNE_ON = ("data.dataset", "tokenizer.name", "tokenizer.model", "train.init_from", "model.")


def names(folder: Path = FOLDER) -> list[str]:
    """The presets, `default` first."""
    return sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))


def description(name: str, folder: Path = FOLDER) -> str:
    """The first comment in a preset's file that is meant for people: what it trains, on what."""
    for line in _path(name, folder).read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# yaml-language-server:"):
            return line.removeprefix("# ")
    return ""


def compose(name: str, folder: Path = FOLDER) -> str:
    """The text of params.yaml under a preset: default.yaml with the preset's values in place.

    Raises UserError for an unknown preset, an unknown key, or a value that does not fit.
    """
    path = _path(name, folder)
    text = _path(DEFAULT, folder).read_text(encoding="utf-8")
    if name != DEFAULT:
        text = text.replace(description(DEFAULT, folder), description(name, folder), 1)
        text = overlay(text, _read_round_trip(path))
    try:
        values = _parse(text)
    except YAMLError:  # an empty list cannot take the place of one in lines
        raise UserError(
            f"{path}: an empty list does not fit where a list is; set it in {PARAMS_FILE}"
        ) from None
    validate(Params, values, path)
    return text


def replacement(
    name: str,
    force: bool = False,
    folder: Path = FOLDER,
    params_file: Path = PARAMS_FILE,
    values: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The text of params.yaml under a preset, with `{section: {key: value}}` in place of some of its values.

    Also {dotted name: (value before, value then)} of what differs from the present params.yaml. Raises
    UserError when that holds values of no preset, unless forced, and for values that do not fit.
    """
    text = compose(name, folder)
    if values:
        text = overlay(text, values)
        validate(Params, _parse(text), params_file)
    if not params_file.exists():
        return text, {}
    try:
        before = read_yaml(params_file)
    except UserError:
        if not force:
            raise
        before = {}
    if not force:
        _refuse_hand_edits(before, folder, params_file)
    return text, differences(before, _parse(text))


def overlay(text: str, values: Mapping[str, Any]) -> str:
    """The text of params.yaml with `{section: {key: value}}` put in place, its comments kept."""
    yaml = _round_trip()
    document = yaml.load(text)
    for section, entries in values.items():
        if isinstance(entries, Mapping) and section in document:
            document[section].update(entries)
        else:
            document[section] = entries
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (before, after)} of the parameters that differ; None stands for an absent one."""
    old, new = _flatten(before), _flatten(after)
    return {
        name: (old.get(name), new.get(name))
        for name in new | old
        if name not in old or name not in new or not _same(old[name], new[name])
    }


def show(value: Any) -> str:
    """A parameter's value on one line, as YAML and JSON both read it."""
    return json.dumps(value, ensure_ascii=False)


def _refuse_hand_edits(values: Mapping[str, Any], folder: Path, params_file: Path) -> None:
    edits_by_preset = {
        name: _by_hand(name, differences(_parse(compose(name, folder)), values)) for name in names(folder)
    }
    nearest = min(edits_by_preset, key=lambda name: len(edits_by_preset[name]))
    edits = [f"{key} = {show(now)}" for key, (_, now) in edits_by_preset[nearest].items()]
    if edits:
        more = f" and {len(edits) - 3} more" if len(edits) > 3 else ""
        raise UserError(
            f"{params_file} has edits of yours on top of preset {nearest}: {', '.join(edits[:3])}{more}; "
            "save them elsewhere, or overwrite them with FORCE=1 (--force)"
        )


def _by_hand(preset: str, edits: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    by_commands = SET_BY_FINETUNE_ON if preset == "finetune-on" else SET_BY_TRAIN_ON
    by_hand = (key for key in edits if key == "model.dropout" or not key.startswith(by_commands))
    return {key: edits[key] for key in by_hand}


def _path(name: str, folder: Path) -> Path:
    known = names(folder)
    if name not in known:
        raise UserError(f"unknown preset {name}{suggest(name, known)} (there are {', '.join(known)})")
    return folder / f"{name}.yaml"


def _read_round_trip(path: Path) -> Any:
    read_yaml(path)  # has the one-line errors for what is no YAML mapping
    return _round_trip().load(path.read_text(encoding="utf-8"))


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000  # never fold a line
    return yaml


def _parse(text: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _same(one: Any, other: Any) -> bool:
    """Equal, and not merely as True equals 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
