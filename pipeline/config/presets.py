"""Presets: files of values that override presets/default.yaml; both are composed into params.yaml.

A preset with `base: <preset>` overrides the values of that one instead.

params.yaml is the only parameter file that the stages and DVC read. A preset replaces all of it, but
overwrites values edited by hand only with --force.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, Params
from pipeline.config.params_yaml import params_yaml
from pipeline.config.reading import read_text
from pipeline.config.validation import read_yaml, suggest, validate

FOLDER = Path("presets")
DEFAULT = "default"

Values = Mapping[str, Mapping[str, Any]]  # {section: {key: value}}

# Parameters that these commands set in params.yaml; they do not count as edited by hand.
SET_BY_TRAIN_ON = ("data.dataset",)
SET_BY_FINETUNE_ON = ("data.dataset", "tokenizer.name", "tokenizer.model", "train.init_from", "model.")


def names(folder: Path = FOLDER) -> list[str]:
    """The presets, `default` first."""
    return sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))


def description(name: str, folder: Path = FOLDER) -> str:
    """The first comment line of a preset's file, which says what it trains on which text."""
    for line in read_text(_path(name, folder)).splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ")
    return ""


def compose(name: str, folder: Path = FOLDER, values: Values | None = None) -> str:
    """The text of params.yaml for a preset; its base has the values that the preset leaves out.

    `values`, {section: {key: value}}, override the preset's. Raises UserError for an unknown preset, an
    unknown key, or an invalid value.
    """
    return params_yaml(composed(name, folder, values), description(name, folder))


def composed(name: str, folder: Path = FOLDER, values: Values | None = None) -> Params:
    """The parameters for a preset (see `compose`)."""
    path = _path(name, folder)
    layers = [*_layers(name, folder), values or {}]
    return validate(Params, merged(layers), path if values is None else PARAMS_FILE)


def replacement(
    name: str,
    force: bool = False,
    folder: Path = FOLDER,
    params_file: Path = PARAMS_FILE,
    values: Values | None = None,
) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The text of params.yaml for a preset, and {dotted name: (old value, new value)} of what it changes.

    `values`, {section: {key: value}}, override the preset's. The old values are those of the present
    params.yaml. Raises UserError if that was edited by hand, unless `force`, and for invalid values.
    """
    text = compose(name, folder, values)
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
    """The text of params.yaml with `values`, {section: {key: value}}, put in; comments are kept."""
    yaml = yaml_to_write()
    document = yaml.load(text)
    for section, entries in values.items():
        if isinstance(entries, Mapping) and section in document:
            document[section].update(entries)
        else:
            document[section] = entries
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes U+0085 as an escape; as it is, it would be read as a line end, and so as a space."""

    def represent_text(self, text: str) -> Any:
        style = '"' if "\x85" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_text)


def yaml_to_write() -> YAML:
    """A YAML writer that keeps the comments and quotes of what it read, and never folds a line."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (before, after)} of the parameters that differ; None for a missing one."""
    old, new = flatten(before), flatten(after)
    return {
        name: (old.get(name), new.get(name))
        for name in new | old
        if name not in old or name not in new or not _same(old[name], new[name])
    }


def show(value: Any) -> str:
    """A parameter's value on one line that is both YAML and JSON."""
    return json.dumps(value, ensure_ascii=False)


def nearest(values: Mapping[str, Any], folder: Path = FOLDER) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The preset nearest to `values`, and {dotted name: (its value, value in `values`)} of what differs.

    Parameters that `train-on` and `finetune-on` set do not count.
    """
    for_short_text = _set_for_short_text(values)
    edits_by_preset = {
        name: _by_hand(name, differences(_parse(compose(name, folder)), values), for_short_text)
        for name in names(folder)
    }
    name = min(edits_by_preset, key=lambda name: len(edits_by_preset[name]))
    return name, edits_by_preset[name]


def before_short_text(values: Mapping[str, Any], folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What `train-on` replaced for a short text, as {section: {key: the nearest preset's value}}."""
    replaced: dict[str, dict[str, Any]] = {}
    short = _set_for_short_text(values)
    if short and names(folder):
        preset = composed(nearest(values, folder)[0], folder).model_dump()
        for section, _, key in (name.partition(".") for name in short):
            replaced.setdefault(section, {})[key] = preset[section][key]
    return replaced


def _set_for_short_text(values: Mapping[str, Any]) -> set[str]:
    """The dotted names of the parameters that are as `train-on` set them for a short text."""
    now = flatten(values)
    try:
        set_by_it = read_yaml(Path("data", str(now.get("data.dataset")), "dataset.yaml")).get("short_text")
    except UserError:  # no dataset, or a broken one
        return set()
    known = set_by_it.items() if isinstance(set_by_it, dict) else ()
    return {name for name, value in known if name in now and _same(now[name], value)}


def _refuse_hand_edits(values: Mapping[str, Any], folder: Path, params_file: Path) -> None:
    name, found = nearest(values, folder)
    edits = [f"{key} = {show(now)}" for key, (_, now) in found.items()]
    if edits:
        more = f" and {len(edits) - 3} more" if len(edits) > 3 else ""
        raise UserError(
            f"{params_file} has edits of yours on top of preset {name}: {', '.join(edits[:3])}{more}; "
            "save them elsewhere, or overwrite them with FORCE=1 (--force)"
        )


def _by_hand(
    preset: str, edits: Mapping[str, tuple[Any, Any]], for_short_text: set[str]
) -> dict[str, tuple[Any, Any]]:
    by_commands = SET_BY_FINETUNE_ON if preset == "finetune-on" else SET_BY_TRAIN_ON
    by_hand = (key for key in edits if key == "model.dropout" or not key.startswith(by_commands))
    return {key: edits[key] for key in by_hand if key not in for_short_text}


def _layers(name: str, folder: Path, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The values in a preset's file, after those of its base; `above` are the presets based on it."""
    path = _path(name, folder)
    values = read_yaml(path)
    if name == DEFAULT:
        return [values]
    base = values.pop("base", DEFAULT)
    others = [other for other in names(folder) if other not in (*above, name)]
    if base not in others:
        raise UserError(f"{path}: base = {base}: not a preset to start from; name one of {', '.join(others)}")
    return [*_layers(base, folder, (*above, name)), values]


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge sections key by key; later layers win. What is not a section is kept for `validate` to refuse."""
    result: dict[str, Any] = {}
    for layer in layers:
        for section, keys in layer.items():
            known = result.get(section, {})
            result[section] = {**known, **keys} if isinstance(keys, Mapping) and known is not None else keys
    return result


def _path(name: str, folder: Path) -> Path:
    known = names(folder)
    if name not in known:
        raise UserError(f"unknown preset {name}{suggest(name, known)} (there are {', '.join(known)})")
    return folder / f"{name}.yaml"


def _parse(text: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where True and 1 are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
