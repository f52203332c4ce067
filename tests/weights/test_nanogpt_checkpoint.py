"""nanoGPT's ckpt.pt is read and written with equal logits, or one line says why not; nothing in it is run.

So is nano-gpt's checkpoint_*.bin, which is only read.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config.errors import UserError
from pipeline.model.gpt import GPT
from pipeline.model.load import build_with, load_model, parameter_shapes
from pipeline.model.recurrence import Recurrence
from pipeline.tokens.nanogpt_ids import read_meta, write_meta
from pipeline.tokens.tokenizers import GPT2_FILES, GPT2_URL, ByteTokenizer, CharTokenizer, load_tokenizer
from pipeline.weights.model_folder import load_config, save_config, save_weights
from pipeline.weights.nanogpt_checkpoint import is_written, read_checkpoint, write_checkpoint
from tests import tiny
from tests.conftest import Ended
from tests.family import MOE, RECURRENT, SHARED, VARIANTS
from tests.train.runs import flip_a_bit

Stage = Callable[..., Ended]

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
CHARACTERS = CharTokenizer("\nabcdefghi", end_of_text=True)  # 11 ids, as many as the tiny model has

# What nanoGPT's ckpt.pt has, and what the fork's has besides, with all of it off.
ARGS = {
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "bias": True,
    "vocab_size": 11,
    "dropout": 0.0,
}
FORKS_ARGS: dict[str, Any] = {
    "share_parameters_across_layers": False,
    "recurrent_shared_weights": False,
    "recurrent_depth": 32,
    "moe": False,
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_hard_routing": False,
    "share_moe_experts": False,
    "scale_loss_by_n_layer": False,
    "layer_dropout": 0.0,
    "sticky_dropout": 0.0,
    "learned_stopping": False,
    "learned_stopping_warmup_steps": 0,
    "learned_stopping_controller_weight": 0.0,
    "learned_stopping_entropy_weight": 0.0,
    "learned_stopping_target_depth": None,
    "learned_stopping_temperature": 1.0,
    "learned_stopping_min_prob": 1e-4,
    "learned_stopping_use_threshold": False,
    "learned_stopping_threshold": 0.5,
    "fixed_edge_blocks": False,
    "use_rmsnorm": False,
    "recurrent_noise_mode": "none",
    "recurrent_noise_std": 0.0,
    "recurrent_noise_concat_dim": None,
    "recurrent_extra_layernorm": False,
}
FORKS_MOE = {"moe_dummy": True}  # its mixtures always have one, without a switch
LOOP = {**SHARED, **RECURRENT}  # there recurrence does not imply sharing


def theirs(gpt: GPT) -> dict[str, torch.Tensor]:
    """The tensors of a model as nanoGPT and its fork call them."""
    trunk = gpt.trunk
    parts: dict[str, nn.Module] = {"transformer.ln_f": gpt.head.ln_f}
    if isinstance(trunk, Recurrence):
        parts |= {"transformer.h.0": trunk.step.block}
        parts |= {"fixed_head": trunk.prelude[0], "fixed_tail": trunk.coda[0]} if len(trunk.prelude) else {}
        parts |= {"recurrent_extra_ln": trunk.step.norm} if trunk.step.norm is not None else {}
    else:
        parts |= {f"transformer.h.{number}": block for number, block in enumerate(trunk.blocks())}
    wte, wpe = gpt.embed.wte.weight.detach(), gpt.embed.wpe.weight.detach()  # type: ignore[union-attr]
    tensors = {"transformer.wte.weight": wte, "transformer.wpe.weight": wpe, "lm_head.weight": wte}
    experts: dict[str, torch.Tensor] = {}
    for part, module in sorted(parts.items(), reverse=True):
        for name, tensor in module.state_dict().items():
            name = name.removeprefix("block.").replace("mlp.router.scores", "mlp.router")
            tensors[f"{part}.{name}"] = tensor
    # Experts are modules there, and those of all blocks are listed in each where they are shared.
    for name in [name for name in tensors if ".experts." in name]:
        experts[name.partition(".mlp.")[2]] = tensors[name]
    blocks = [name.removesuffix(".ln_1.weight") for name in tensors if name.endswith(".ln_1.weight")]
    for name, stacked in experts.items():
        for block in blocks:
            own = tensors.pop(f"{block}.mlp.{name}", stacked)
            for number, tensor in enumerate(own):
                tensors[f"{block}.mlp.{name.replace('experts', f'experts.{number}')}"] = tensor
    return tensors


def saved(path: Path, tensors: dict[str, Any], prefix: str = "", **args: Any) -> Path:
    """A ckpt.pt as nanoGPT's train.py writes it."""
    torch.save(
        {
            "model": {prefix + name: tensor for name, tensor in tensors.items()},
            "optimizer": {
                "state": {0: {"step": torch.tensor(3.0)}},
                "param_groups": [{"betas": (0.9, 0.95)}],
            },
            "model_args": {**ARGS, **args},
            "iter_num": 3,
            "best_val_loss": torch.tensor(2.5),
            "config": {"dataset": "mine", "init_from": "scratch", "compile": True},
        },
        path,
    )
    return path


def saved_by_nano_gpt(path: Path, tensors: dict[str, Any], prefix: str = "", **config: Any) -> Path:
    """A checkpoint_*.bin as nano-gpt's trainer writes it: all plain values, and the causal masks."""
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(3)}
    sizes = {name: ARGS[name] for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    torch.save(
        {
            "model_state_dict": {
                prefix + name: tensor.clone() if isinstance(tensor, torch.Tensor) else tensor
                for name, tensor in (masks | tensors).items()
            },
            "config": {**sizes, **config},
            "step": 3,
            "val_loss_accum": 2.5,
            "optimizer_state_dict": {
                "state": {0: {"step": torch.tensor(3.0)}},
                "param_groups": [{"betas": (0.9, 0.95), "fused": None}],
            },
            "train_config": {"seed": 1337, "max_lr": 6e-4, "checkpoint_dir": "checkpoints"},
            "dataset_config": {"dataset_name": "finewebedu", "micro_batch_size": 16},
            "eval_config": {"validation_steps": 20, "hellaswag_samples": None},
            "sample_config": None,
            "name": None,
        },
        path,
    )
    return path


@torch.no_grad()
def read_logits(path: Path, depth: int | None = None) -> torch.Tensor:
    found = read_checkpoint(path)
    return build_with(found.config, found.weights(parameter_shapes(found.config))).eval()(IDS, depth=depth)


@torch.no_grad()
def logits_of_transformers(found: dict[str, Any], activation: str = "gelu") -> torch.Tensor:
    """Those of transformers' GPT-2 with a checkpoint's weights; its names are nanoGPT's."""
    args = found["model_args"]
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            activation_function=activation,
            n_positions=args["block_size"],
            **{name: args[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        )
    )
    for name, parameter in gpt2.named_parameters():
        if name.endswith(".bias") and not args["bias"]:
            parameter.zero_()
            continue
        tensor = found["model"][name]
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        parameter.copy_(tensor.T if turned else tensor)
    return gpt2.eval()(IDS).logits


# reading


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_is_read_with_equal_logits(tmp_path: Path, bias: bool, prefix: str) -> None:
    gpt = tiny.model(bias=bias)
    path = saved(tmp_path / "ckpt.pt", theirs(gpt), prefix, bias=bias)
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))
    assert read_checkpoint(path).config == tiny.config(bias=bias)


def test_an_old_checkpoint_is_read(tmp_path: Path) -> None:
    """It has masks among its tensors, and no switch for biases, which it has."""
    gpt = tiny.model()
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(3)}
    path = saved(tmp_path / "ckpt.pt", {**theirs(gpt), **masks})
    found = torch.load(path)
    del found["model_args"]["bias"], found["model_args"]["dropout"]
    torch.save(found, path)
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nano_gpts_checkpoint_is_read_with_the_logits_of_transformers(tmp_path: Path, prefix: str) -> None:
    """nano-gpt computes what transformers' GPT-2 does: it loads OpenAI's weights from there."""
    tensors = theirs(tiny.model())
    path = saved_by_nano_gpt(tmp_path / "checkpoint_000003.bin", tensors, prefix)
    expected = logits_of_transformers({"model": tensors, "model_args": ARGS}, "gelu_new")
    assert torch.allclose(read_logits(path), expected, atol=1e-6)
    assert not torch.allclose(
        logits_of_transformers({"model": tensors, "model_args": ARGS}), expected, atol=1e-6
    )
    config = read_checkpoint(path).config
    assert config == tiny.config(activation="gelu_new")
    with torch.no_grad():
        assert torch.equal(read_logits(path), tiny.model(activation="gelu_new")(IDS))


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"moe": True}, "unknown switch moe in config; only those of nano-gpt can be read"),
        ({}, {1: 2}, "unknown switch 1 in config"),
        ({}, {"n_head": 3}, "config: n_embd = 16 is not divisible by n_head = 3"),
        ({}, {"vocab_size": "many"}, "config: vocab_size = 'many'"),
        ({"a": 1}, {}, "a in model_state_dict is not a tensor but of type int; name a ckpt.pt"),
        ({"transformer.wpe.weight": torch.ones(3, 5)}, {}, "wrong shape for transformer.wpe.weight"),
    ],
)
def test_what_is_wrong_in_nano_gpts_checkpoint_is_named(
    tmp_path: Path, tensors: dict[str, Any], config: dict[Any, Any], message: str
) -> None:
    path = saved_by_nano_gpt(tmp_path / "checkpoint.bin", theirs(tiny.model()) | tensors)
    found = torch.load(path)
    torch.save({**found, "config": found["config"] | config}, path)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_logits(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_half_precision_becomes_single_and_an_untied_head_stays_untied(tmp_path: Path) -> None:
    gpt = tiny.model(tie_word_embeddings=False).bfloat16().float()
    head = {f"lm_head.{name}": tensor for name, tensor in gpt.head.lm_head.state_dict().items()}
    halved = {name: tensor.bfloat16() for name, tensor in (theirs(gpt) | head).items()}
    path = saved(tmp_path / "ckpt.pt", halved)
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))
    assert not read_checkpoint(path).config.tie_word_embeddings


@pytest.mark.parametrize(
    "switches",
    [
        {},
        SHARED,
        {**SHARED, "fixed_edge_blocks": True, "bias": False},
        LOOP,
        {**LOOP, "fixed_edge_blocks": True, "recurrent_extra_layernorm": True},
        {**LOOP, "layer_dropout": 0.2, "fixed_edge_blocks": True},
        {**LOOP, "sticky_dropout": 0.2, "scale_loss_by_n_layer": True},
        {**LOOP, "recurrent_noise_mode": "add", "recurrent_noise_std": 0.1},
        MOE,
        {**MOE, "bias": False, "moe_top_k": 3},
        {**MOE, "share_moe_experts": True},
        {**LOOP, **MOE},
        {**LOOP, **MOE, "share_moe_experts": True},
        {**LOOP, **MOE, "fixed_edge_blocks": True, "share_moe_experts": True},
    ],
    ids=lambda switches: "-".join(switches) or "gpt2",
)
def test_the_forks_variants_are_read_with_equal_logits(tmp_path: Path, switches: dict[str, Any]) -> None:
    ours = {**switches, **FORKS_MOE} if "moe" in switches else switches
    gpt = tiny.model(**ours)
    path = saved(tmp_path / "ckpt.pt", theirs(gpt), "_orig_mod.", **{**FORKS_ARGS, **switches})
    assert read_checkpoint(path).config == tiny.config(**ours)
    for depth in (None, 2) if switches.get("recurrent_shared_weights") else (None,):
        with torch.no_grad():
            assert torch.equal(read_logits(path, depth), gpt(IDS, depth=depth))


def test_the_forks_noise_channels_are_read(tmp_path: Path) -> None:
    """There a projection makes the stream anew, here it adds to it."""
    switches = {"recurrent_noise_mode": "concat", "recurrent_noise_std": 0.1, "recurrent_noise_concat_dim": 4}
    gpt = tiny.model(**LOOP, **switches)
    mix = gpt.get_submodule("trunk.step.noise.mix")
    weight, bias = mix.get_parameter("weight").detach(), mix.get_parameter("bias").detach()
    projection = {
        "recurrent_noise_proj.weight": weight + torch.eye(16, 20),
        "recurrent_noise_proj.bias": bias,
    }
    path = saved(tmp_path / "ckpt.pt", theirs(gpt) | projection, **{**FORKS_ARGS, **LOOP, **switches})
    with torch.no_grad():
        assert torch.allclose(read_logits(path), gpt(IDS), atol=1e-5)


@pytest.mark.parametrize(
    "switches",
    [
        {"fixed_edge_blocks": True, "layer_dropout": 0.1, "sticky_dropout": 0.1},
        {"recurrent_shared_weights": True, "recurrent_noise_mode": "add", "recurrent_noise_std": 0.1},
        {"moe_hard_routing": True, "share_moe_experts": True},
        {"recurrent_noise_std": 0.1},
    ],
    ids=lambda switches: "-".join(switches),
)
def test_what_the_fork_ignores_is_ignored(tmp_path: Path, switches: dict[str, Any]) -> None:
    gpt = tiny.model()
    path = saved(tmp_path / "ckpt.pt", theirs(gpt), **{**FORKS_ARGS, **switches})
    assert read_checkpoint(path).config == tiny.config()
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))


def test_one_blocks_experts_are_shared_with_none(tmp_path: Path) -> None:
    gpt = tiny.model(**MOE, **FORKS_MOE, n_layer=1)
    switches = {**MOE, "share_moe_experts": True, "n_layer": 1}
    path = saved(tmp_path / "ckpt.pt", theirs(gpt), **{**FORKS_ARGS, **switches})
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))


@pytest.mark.parametrize(
    "switches",
    [
        {**LOOP, "learned_stopping": True},
        {**LOOP, "attentive_stopping": True},
        {**SHARED, "fixed_edge_blocks": True, "use_rmsnorm": True},
        {**MOE, "moe_hard_routing": True},
        {"a_switch_of_mine": True},
        {"n_embd": "wide"},
        {"n_head": 3},
    ],
    ids=lambda switches: list(switches)[-1],
)
def test_a_model_that_is_not_here_is_refused_by_its_switch(tmp_path: Path, switches: dict[str, Any]) -> None:
    path = saved(tmp_path / "ckpt.pt", theirs(tiny.model()), **{**FORKS_ARGS, **switches})
    with pytest.raises(UserError, match=f"{list(switches)[-1]}") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", sorted(theirs(tiny.model(moe=True, moe_dummy=True, moe_num_experts=2, n_layer=1)))
)
def test_a_missing_extra_or_misshapen_tensor_is_named(tmp_path: Path, name: str) -> None:
    switches: dict[str, Any] = {"moe": True, "moe_num_experts": 2, "n_layer": 1}
    tensors = theirs(tiny.model(**switches, **FORKS_MOE))
    lacking = {other: tensor for other, tensor in tensors.items() if other != name}
    for changed, problem in (
        (lacking, f"lacks {name}"),
        (tensors | {f"{name}.new": tensors[name]}, f"has unknown {name}.new"),
        (tensors | {name: torch.zeros(3, 5, 7)}, f"has the wrong shape for {name}"),
    ):
        path = saved(tmp_path / "ckpt.pt", changed, **switches)
        with pytest.raises(UserError, match=problem) as error:
            read_logits(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


# files that are no checkpoints


class Touch:
    """Unpickled by pickle, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["config", "model", "all"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", [saved, saved_by_nano_gpt])
def test_nothing_in_a_checkpoint_is_executed(
    tmp_path: Path, place: str, protocol: int, save: Callable[..., Path]
) -> None:
    touch = Touch(tmp_path / "executed")
    path = save(tmp_path / "ckpt.pt", theirs(tiny.model()))
    found = torch.load(path)
    torch.save(touch if place == "all" else {**found, place: {"x": touch}}, path, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"ckpt.pt: refused, .*nothing was executed") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()  # so it would have been


def test_what_a_refused_checkpoint_asks_for_is_named(tmp_path: Path) -> None:
    torch.save(
        {"model": {}, "model_args": {}, "path": Path("a"), "run": Touch(tmp_path)}, tmp_path / "ckpt.pt"
    )
    with pytest.raises(UserError, match=r"asks for pathlib.*\.PosixPath, posix.system;"):
        read_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("what", ["pickle", "text", "empty", "half", "missing", "folder"])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, what: str) -> None:
    path = saved(tmp_path / "ckpt.pt", theirs(tiny.model()))
    content = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        pickled = pickle.dumps({"model": {}, "model_args": Touch(tmp_path / "executed")})
        path.write_bytes({"pickle": pickled, "text": b"To be", "empty": b"", "half": content[:999]}[what])
    with pytest.raises(UserError, match="ckpt.pt: (damaged|no such file|is a folder)") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_pytorchs_older_format_is_read(tmp_path: Path) -> None:
    gpt = tiny.model()
    path = saved(tmp_path / "ckpt.pt", theirs(gpt))
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    with torch.no_grad():
        assert torch.equal(read_logits(path), gpt(IDS))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"ckpt.pt: damaged, or not written by torch.save; copy it again"):
        read_checkpoint(path)


def test_nothing_in_pytorchs_older_format_is_executed(tmp_path: Path) -> None:
    path, touch = tmp_path / "ckpt.pt", Touch(tmp_path / "executed")
    torch.save({"model": {}, "model_args": touch}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"ckpt.pt: refused, .*nothing was executed") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()  # so it would have been


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1, 2], "no model and model_args"),
        ({"model": {}}, "no model and model_args"),
        ({"model_state_dict": {}}, "no model_state_dict and config"),
        ({"model_state_dict": {}, "config": {}}, "n_layer is missing"),
        ({"model": {"a": 1}, "model_args": ARGS}, "a in model is not a tensor but of type int"),
        ({"model": {1: torch.ones(1)}, "model_args": ARGS}, "1 in model is not a tensor's name"),
        ({"model": {}, "model_args": {}}, "n_layer is missing"),
        ({"model": {}, "model_args": ARGS}, "lacks lm_head.weight"),
    ],
)
def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path, found: Any, message: str) -> None:
    torch.save(found, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=f"ckpt.pt: .*{message}"):
        read_logits(tmp_path / "ckpt.pt")


# writing


@pytest.mark.parametrize("switches", [{}, {"bias": False}, SHARED, RECURRENT], ids=str)
def test_what_is_written_has_equal_logits_in_transformers_and_here(
    tmp_path: Path, switches: dict[str, Any]
) -> None:
    gpt, path = tiny.model(**switches), tmp_path / "ckpt.pt"
    depth = 5 if switches == RECURRENT else None
    n_layer = write_checkpoint(gpt.state_dict(), tiny.config(**switches), 10, "mine", path, depth)
    assert n_layer == (depth or 3)
    found = torch.load(path)  # as sample.py does
    assert found["config"] == {"dataset": "mine"}
    assert found["model_args"] == {
        **ARGS,
        "bias": switches.get("bias", True),
        "n_layer": n_layer,
        "vocab_size": 10,
    }
    with torch.no_grad():
        ours = gpt(IDS, depth=depth)[..., :10]  # the last row pads
    assert torch.allclose(logits_of_transformers(found), ours, atol=1e-5)
    assert torch.allclose(read_logits(path), ours, atol=1e-6)
    assert is_written(path)
    assert not is_written(saved(tmp_path / "other.pt", theirs(gpt)))


def test_a_written_model_of_one_layer_has_nanogpts_names(tmp_path: Path) -> None:
    write_checkpoint(
        tiny.model(n_layer=1).state_dict(), tiny.config(n_layer=1), 11, "mine", tmp_path / "ckpt.pt"
    )
    tensors = torch.load(tmp_path / "ckpt.pt")["model"]
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "transformer.wte.weight": (11, 16),
        "transformer.wpe.weight": (8, 16),
        "transformer.h.0.ln_1.weight": (16,),
        "transformer.h.0.ln_1.bias": (16,),
        "transformer.h.0.attn.c_attn.weight": (48, 16),
        "transformer.h.0.attn.c_attn.bias": (48,),
        "transformer.h.0.attn.c_proj.weight": (16, 16),
        "transformer.h.0.attn.c_proj.bias": (16,),
        "transformer.h.0.ln_2.weight": (16,),
        "transformer.h.0.ln_2.bias": (16,),
        "transformer.h.0.mlp.c_fc.weight": (64, 16),
        "transformer.h.0.mlp.c_fc.bias": (64,),
        "transformer.h.0.mlp.c_proj.weight": (16, 64),
        "transformer.h.0.mlp.c_proj.bias": (16,),
        "transformer.ln_f.weight": (16,),
        "transformer.ln_f.bias": (16,),
        "lm_head.weight": (11, 16),
    }


def test_a_loop_is_in_the_file_once(tmp_path: Path) -> None:
    sizes = []
    for depth in (2, 9):
        write_checkpoint(
            tiny.model(**RECURRENT).state_dict(),
            tiny.config(**RECURRENT),
            11,
            "mine",
            tmp_path / "ckpt.pt",
            depth,
        )
        sizes.append(sum(storage.nbytes() for storage in storages(torch.load(tmp_path / "ckpt.pt")["model"])))
    assert sizes[0] == sizes[1]


def storages(tensors: dict[str, torch.Tensor]) -> list[torch.UntypedStorage]:
    return list({tensor.data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_that_nanogpt_cannot_be_is_refused_by_its_switch(tmp_path: Path, name: str) -> None:
    switches, path = VARIANTS[name], tmp_path / "ckpt.pt"
    gpt, config = tiny.model(**switches), tiny.config(**switches)
    if not config.beyond_gpt2() and config.tie_word_embeddings:
        write_checkpoint(gpt.state_dict(), config, 11, "mine", path)
        with torch.no_grad():
            assert torch.allclose(read_logits(path), gpt(IDS), atol=1e-5)
        return
    with pytest.raises(UserError) as error:
        write_checkpoint(gpt.state_dict(), config, 11, "mine", path)
    switch = re.match(r"model\.(\w+) = (\S+): nanoGPT does not support it", str(error.value))
    assert switch and str(switches[switch[1]]).lower() == switch[2]
    assert not path.exists()


def test_a_depth_needs_a_loop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recurrent depth 5: this model has 3 layers and no loop"):
        write_checkpoint(tiny.model().state_dict(), tiny.config(), 11, "mine", tmp_path / "ckpt.pt", 5)


# the commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_model(folder: Path, tokenizer: CharTokenizer | ByteTokenizer = CHARACTERS, **switches: Any) -> GPT:
    folder.mkdir(parents=True)
    gpt = tiny.model(**switches)
    save_weights(gpt.state_dict(), folder)
    save_config(tiny.config(**switches), folder)
    tokenizer.save(folder)
    return gpt


def test_a_model_goes_to_nanogpt_and_comes_back(here: Path, stage: Stage) -> None:
    gpt = save_model(Path("results/model"), **RECURRENT)
    for depth, layers in ((), 3), (("--recurrent-depth", "4"), 4):
        ended = stage("export", "--format", "nanogpt", *depth)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith(f"results/nanogpt: nanoGPT's GPT with {layers} layers")
    assert f"cp {here}/results/nanogpt/meta.pkl data/nanogpt/" in ended.out
    assert f"python sample.py --out_dir={here}/results/nanogpt " in ended.out
    assert sorted(path.name for path in Path("results").rglob("*.p*")) == ["ckpt.pt", "meta.pkl"]
    assert read_meta(Path("results/nanogpt/meta.pkl")).to_json() == CHARACTERS.to_json()
    arguments = ("results/nanogpt/ckpt.pt", "--meta", "results/nanogpt/meta.pkl")
    ended = stage("import_checkpoint", *arguments)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("saved/nanogpt: 0.01M parameters, 11 in the vocabulary\n")
    with torch.no_grad():
        assert torch.equal(load_model(Path("saved/nanogpt"))(IDS), gpt(IDS, depth=4))
    assert load_tokenizer(Path("saved/nanogpt")).to_json() == CHARACTERS.to_json()
    again = stage("import_checkpoint", *arguments)
    assert (again.status, again.err) == (
        2,
        "error: --out saved/nanogpt: exists already; name a new folder, or remove it\n",
    )
    assert stage("import_checkpoint", *arguments, "--out", "saved/other").status == 0


def test_nano_gpts_model_is_imported_with_gpt2s_activation(here: Path, stage: Stage) -> None:
    saved_by_nano_gpt(Path("checkpoint_000003.bin"), theirs(tiny.model()))
    ended = stage("import_checkpoint", "checkpoint_000003.bin")
    assert ended.status == 2 and "a vocabulary of 11 is not GPT-2's" in ended.err
    write_meta(CHARACTERS, Path("meta.pkl"))
    ended = stage("import_checkpoint", "checkpoint_000003.bin", "--meta", "meta.pkl", "--out", "saved/mine")
    assert (ended.status, ended.err) == (0, "")
    with torch.no_grad():
        assert torch.equal(load_model(Path("saved/mine"))(IDS), tiny.model(activation="gelu_new")(IDS))


def test_an_export_replaces_nothing_but_an_export(here: Path, stage: Stage) -> None:
    save_model(Path("results/model"))
    Path("out").mkdir()
    trained = saved(Path("out/ckpt.pt"), theirs(tiny.model())).read_bytes()
    for out in ("out", "out/ckpt.pt", "results/model", "results"):
        ended = stage("export", "--format", "nanogpt", "--out", out)
        assert (ended.status, ended.err) == (
            2,
            f"error: --out {out}: exists and is not an export; name a new folder\n",
        )
    assert Path("out/ckpt.pt").read_bytes() == trained
    Path("damaged").mkdir()
    Path("damaged/ckpt.pt").write_bytes(trained[:100])
    assert "exists and is not an export" in stage("export", "--format", "nanogpt", "--out", "damaged").err


@pytest.mark.parametrize("name", ["ckpt.pt", "meta.pkl"])
def test_an_export_with_a_flipped_bit_is_not_imported(here: Path, stage: Stage, name: str) -> None:
    save_model(Path("results/model"))
    assert stage("export", "--format", "nanogpt").status == 0
    flip_a_bit(Path("results/nanogpt", name))
    ended = stage("import_checkpoint", "results/nanogpt/ckpt.pt", "--meta", "results/nanogpt/meta.pkl")
    assert ended.status == 2 and not Path("saved").exists()
    assert ended.err.startswith(f"error: results/nanogpt/{name}: not what was saved; make or copy")


def test_gelus_difference_is_told(here: Path, stage: Stage) -> None:
    save_model(Path("results/model"), activation="gelu_new")
    assert "note: nanoGPT uses the exact GELU" in stage("export", "--format", "nanogpt").out


def test_tokens_that_nanogpt_cannot_decode_are_refused(here: Path, stage: Stage) -> None:
    save_model(Path("results/model"), ByteTokenizer(end_of_text=True), vocab_size=257)
    ended = stage("export", "--format", "nanogpt")
    assert ended.status == 2
    assert "neither characters nor GPT-2's" in ended.err
    assert not Path("results/nanogpt").exists()


def test_a_tokenizer_that_is_missing_or_another_is_asked_for(here: Path, stage: Stage) -> None:
    saved(Path("ckpt.pt"), theirs(tiny.model()))
    ended = stage("import_checkpoint", "ckpt.pt")
    assert ended.status == 2
    assert "a vocabulary of 11 is not GPT-2's; name the meta.pkl" in ended.err
    write_meta(CharTokenizer("ab", end_of_text=False), Path("meta.pkl"))
    ended = stage("import_checkpoint", "ckpt.pt", "--meta", "meta.pkl")
    assert ended.status == 2
    assert "--meta meta.pkl: a vocabulary of 2, but ckpt.pt has 11" in ended.err
    Path("meta.pkl").write_bytes(b"cposix\nsystem\n.")
    ended = stage("import_checkpoint", "ckpt.pt", "--meta", "meta.pkl")
    assert ended.status == 2
    assert ended.err.startswith("error: meta.pkl: refused, it asks for 'posix.system';")
    assert not Path("saved").exists()


def test_the_forks_noise_is_told(here: Path, stage: Stage) -> None:
    switches = {**LOOP, "recurrent_noise_mode": "add", "recurrent_noise_std": 0.1}
    saved(Path("ckpt.pt"), theirs(tiny.model(**switches)), **{**FORKS_ARGS, **switches})
    write_meta(CHARACTERS, Path("meta.pkl"))
    assert (
        "note: here noise is added only in training"
        in stage("import_checkpoint", "ckpt.pt", "--meta", "meta.pkl").out
    )


@pytest.mark.mirror
def test_gpt2s_vocabulary_needs_no_meta_and_loses_its_padding(
    here: Path, stage: Stage, mirrored: Callable[[str], Path]
) -> None:
    for name in GPT2_FILES:
        mirrored(GPT2_URL + name)
    gpt = tiny.model(vocab_size=50304)
    saved(Path("ckpt.pt"), theirs(gpt), vocab_size=50304)
    assert stage("import_checkpoint", "ckpt.pt").status == 0
    assert load_config(Path("saved/nanogpt")).vocab_size == 50304
    assert load_tokenizer(Path("saved/nanogpt")).vocab_size == 50257
    ended = stage("export", "--format", "nanogpt", "--model", "saved/nanogpt")
    assert ended.status == 0
    assert "meta.pkl" not in ended.out
    names = {path.name for path in Path("results/nanogpt").iterdir()}
    assert names == {"ckpt.pt", "manifest.json"}
    with torch.no_grad():
        assert torch.allclose(read_logits(Path("results/nanogpt/ckpt.pt")), gpt(IDS)[..., :50257], atol=1e-5)
