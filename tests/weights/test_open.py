"""GPT-2 as transformers saves it, opened by name: the same logits as transformers' own model, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.model.load import build_with, load_model
from pipeline.storage.files import write_json
from pipeline.weights.model_folder import save_config, save_weights
from pipeline.weights.open import open_model
from tests import tiny
from tests.hub_server import COMMIT, serving_hub, use_hub

# GPT-2's four shapes, a 32nd as wide: (layers, heads, width)
SHAPES = {
    "gpt2": (12, 12, 24),
    "gpt2-medium": (24, 16, 32),
    "gpt2-large": (36, 20, 40),
    "gpt2-xl": (48, 25, 50),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def saved(folder: Path, **changes: Any) -> GPT2LMHeadModel:
    """A model of transformers' whose every parameter matters, and its folder."""
    torch.manual_seed(0)
    values = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    ids = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**{**values, **ids, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def difference(theirs: GPT2LMHeadModel, folder: Path) -> float:
    return float((theirs(IDS).logits - load_model(folder)(IDS)).abs().max())


@pytest.mark.parametrize(("activation", "bar"), [("gelu_new", 1e-4), ("gelu", 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_transformers_logits(shape: str, activation: str, bar: float, tmp_path: Path) -> None:
    n_layer, n_head, n_embd = SHAPES[shape]
    theirs = saved(tmp_path, n_layer=n_layer, n_head=n_head, n_embd=n_embd, activation_function=activation)
    published = PUBLISHED[shape]
    assert (published.n_layer, published.n_head, published.n_embd) == (n_layer, n_head, 64 * n_head)
    assert difference(theirs, tmp_path) <= bar


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"vocab_size": 50257},
        {"n_positions": 8},
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": 64},
    ],
)
def test_what_varies_among_gpt2s_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    assert difference(saved(tmp_path, **changes), tmp_path) <= 1e-5


def test_parameters_lie_in_memory_as_in_a_model_from_scratch(tmp_path: Path) -> None:
    saved(tmp_path)
    assert all(parameter.is_contiguous() for parameter in load_model(tmp_path).parameters())


def test_the_config_is_read_and_dropout_is_theirs(tmp_path: Path) -> None:
    saved(tmp_path, resid_pdrop=0.2, tie_word_embeddings=False)
    config = open_model(tmp_path).config
    assert config == tiny.config(
        n_layer=2, block_size=16, dropout=0.2, activation="gelu_new", tie_word_embeddings=False
    )


def test_the_smallest_gpt2_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))  # all as transformers has it
    save_file({}, tmp_path / "model.safetensors")
    assert open_model(tmp_path).config == PUBLISHED["gpt2"].config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_another_dtype_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    rounded: Any = saved(tmp_path / "whole")
    rounded.to(dtype)
    rounded.save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half" / "model.safetensors")["transformer.wpe.weight"].dtype == dtype
    assert difference(rounded.float(), tmp_path / "half") <= 1e-5


def test_the_hubs_own_gpt2_has_shorter_names_and_masks(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, path)
    assert difference(theirs, tmp_path) <= 1e-5


def test_several_files_are_one_model(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="5KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert difference(theirs, tmp_path / "many") <= 1e-5


@torch.no_grad()
def test_a_shorter_context_keeps_the_first_positions(tmp_path: Path) -> None:
    theirs, stored = saved(tmp_path), open_model(tmp_path)
    ours = build_with(stored.config.model_copy(update={"block_size": 8}), stored.weights_for(8)).eval()
    assert ours.embed.wpe is not None and len(ours.embed.wpe.weight) == 8
    assert (theirs(IDS).logits - ours(IDS)).abs().max() <= 1e-5


@torch.no_grad()
def test_our_own_folder_opens_the_same_way(tmp_path: Path) -> None:
    model = tiny.model(moe=True)
    save_weights(model.state_dict(), tmp_path)
    save_config(tiny.config(moe=True), tmp_path)
    assert torch.equal(load_model(tmp_path)(IDS), model(IDS))


@torch.no_grad()
def test_a_name_on_the_hub_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = saved(tmp_path / "served")
    (tmp_path / "served" / "vocab.json").write_text("{}")
    name = f"somebody/model@{COMMIT}"
    with serving_hub("somebody/model", tmp_path / "served", kind="model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        first = open_model(name)
    assert (theirs(IDS).logits - load_model(first)(IDS)).abs().max() <= 1e-5
    assert open_model(name).folder == first.folder  # the server is gone


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def reshape_positions(shape: tuple[int, ...]) -> Callable[[Path], None]:
    return edit_weights(lambda tensors: tensors.update({"transformer.wpe.weight": torch.ones(shape)}))


def write_index(content: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "model.safetensors.index.json", content)


def replace_by_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def rename_to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (edit(model_type="llama"), "config.json: model_type = llama; only models of the type gpt2"),
        (
            edit(activation_function="relu"),
            "config.json: activation_function = relu; only models with gelu_new",
        ),
        (edit(n_inner=48), "config.json: n_inner = 48; only models with None or 64"),
        (edit(layer_norm_epsilon=1e-6), "config.json: layer_norm_epsilon = 1e-06; only"),
        (edit(scale_attn_by_inverse_layer_idx=True), "config.json: scale_attn_by_inverse_layer_idx = True"),
        (edit(n_head=3), "config.json: n_embd = 16 is not divisible by n_head = 3"),
        (edit(resid_pdrop=None), "config.json: resid_pdrop = None: should be a valid number"),
        (edit(resid_pdrop="a"), "config.json: resid_pdrop = 'a': should be a valid number"),
        (edit(n_embd=None), "config.json: n_embd = None: should be a valid integer"),
        (edit(n_positions=0), "config.json: n_positions = 0: should be greater than or equal to 1"),
        (edit(activation_function=["gelu"]), "config.json: activation_function = ['gelu']: should be a"),
        (edit(tie_word_embeddings=None), "config.json: tie_word_embeddings = None: should be a valid bool"),
        (lambda folder: write_json(folder / "config.json", [1]), "config.json: not a JSON object; copy"),
        (write_index({}), "model.safetensors.index.json: no weight_map from tensors to files"),
        (write_index({"weight_map": {"a": 1}}), "model.safetensors.index.json: no weight_map"),
        (write_index([]), "model.safetensors.index.json: not a JSON object"),
        (replace_by_folder, "model.safetensors: is a folder; name a file"),
        *(
            (
                reshape_positions(shape),
                "model.safetensors: has the wrong shape for transformer.wpe.weight; it belongs to another",
            )
            for shape in ((), (16,), (16, 16, 2))
        ),
        (edit(n_layer=3), "model.safetensors: lacks transformer.h.2.attn.c_attn.bias, "),
        (edit(n_positions=32), "model.safetensors: has the wrong shape for transformer.wpe.weight"),
        (
            edit_weights(lambda tensors: tensors.pop("transformer.ln_f.bias")),
            "model.safetensors: lacks transformer.ln_f.bias; it belongs to another model",
        ),
        (
            edit_weights(lambda tensors: tensors.update({"score.weight": torch.ones(2)})),
            "model.safetensors: has unknown score.weight; it belongs to another model",
        ),
        (rename_to_pickle, "no model.safetensors; other formats can run code, so load the model with"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "model.safetensors: damaged: "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(
    spoil: Callable[[Path], None], expected: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_needs_a_vocabulary_that_is_known(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer.json there, and 11 is not the size of GPT-2's"):
        open_model(tmp_path).tokenizer()


@pytest.mark.parametrize("name", ["nowhere", "results/nothing", "saved/mine", "gpt3", "/nowhere/at/all"])
def test_what_is_no_model_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"model {name}: no such folder; train a model first, or") as error:
        open_model(name)
    assert "\n" not in str(error.value)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_hub("somebody/model", tmp_path, kind="model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        with pytest.raises(UserError, match="model models/mine: no such folder, and on the hub: ") as error:
            open_model("models/mine")
    assert "\n" not in str(error.value)
