"""A saved model comes back exactly, and one that cannot gets one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.errors import UserError
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model, load_weights
from pipeline.weights.model_folder import Weights, load_config, save_config, save_weights
from tests import tiny


def save(model: GPT, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_weights(model.state_dict(), folder)
    save_config(tiny.config(), folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny.model(), tmp_path / "model")


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip_is_exact(folder: Path) -> None:
    model, loaded = tiny.model(), load_model(folder)
    assert load_config(folder) == tiny.config()
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids), model(ids))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_mixture_saved_before_its_dummy_could_be_left_out_has_one(tmp_path: Path) -> None:
    save_config(tiny.config(moe=True, moe_dummy=True), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["moe_dummy"]
    path.write_text(json.dumps(values))
    assert load_config(tmp_path) == tiny.config(moe=True, moe_dummy=True)


def test_the_same_weights_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    state = tiny.model().state_dict()
    other = tmp_path / "other"
    other.mkdir()
    save_weights(dict(reversed(state.items())), other)
    assert (other / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_tied_matrix_is_saved_once_and_nothing_is_pickled(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    state = load_file(folder / "model.safetensors")
    assert [name for name in state if "wte" in name or "head.lm" in name] == ["embed.wte.weight"]
    header = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + size]).keys() == state.keys()


def test_others_may_read_the_weights(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = save(tiny.model(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def change(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        state = {name: value.clone() for name, value in load_file(path).items()}
        edit(state)
        save_file(state, path)

    return apply


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            change(lambda state: state.pop("head.ln_f.bias")),
            "lacks head.ln_f.bias; it belongs to another model",
        ),
        (change(lambda state: state.update(moe=torch.ones(1))), "has unknown moe;"),
        (
            change(lambda state: state.update({"embed.wpe.weight": torch.ones(9, 16)})),
            "has the wrong shape for embed.wpe.weight;",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "damaged: "),
        (lambda path: path.write_bytes(b""), "damaged: "),
        (Path.unlink, "no such file; train a model first"),
    ],
)
def test_weights_that_do_not_fit_get_one_line(
    folder: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    path = folder / "model.safetensors"
    spoil(path)
    for load in (lambda: load_model(folder), lambda: load_weights(tiny.model(), Weights(path))):
        with pytest.raises(UserError) as error:
            load()
        assert message(error).startswith(f"{path}: {expected}")


def test_a_folder_in_the_place_of_a_file_gets_one_line(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(UserError) as error:
            load_model(folder)
        assert message(error).startswith(f"{folder / name}: is a folder; name a file")


def test_weights_that_do_not_fit_change_nothing(folder: Path) -> None:
    path = folder / "model.safetensors"
    change(lambda state: state.pop("head.ln_f.bias"))(path)
    model = tiny.model()
    with torch.no_grad():
        model.embed.wte.weight.zero_()
    with pytest.raises(UserError):
        load_weights(model, Weights(path))
    assert not model.embed.wte.weight.any()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file; train a model first, or name another folder"),
        (b"{", "not JSON: "),
        (b"\xff\xfe", "not UTF-8 at byte 0; copy it again"),
        (b"[1]", "not a JSON object; copy it again"),
        (b"{}", "n_layer is missing (and 6 more)"),
        (
            json.dumps(tiny.config().model_dump() | {"vocab_sise": 11}).encode(),
            "unknown parameter vocab_sise; did you mean vocab_size?",
        ),
    ],
)
def test_config_that_cannot_be_read_gets_one_line(folder: Path, content: bytes | None, expected: str) -> None:
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert message(error).startswith(f"{path}: ")
    assert expected in message(error)
