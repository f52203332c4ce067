"""Our models as Hugging Face's: what transformers' GPT2LMHeadModel loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.model.block import Block, LayerDropout
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.model.recurrence import Recurrence
from pipeline.model.saved import CONFIG_FILE, WEIGHTS_FILE

Tensors = dict[str, torch.Tensor]


def to_gpt2(model: GPT, config: GPTConfig, depth: int | None = None) -> tuple[dict[str, Any], Tensors]:
    """The `config.json` and the parameters, on the CPU, of the GPT2LMHeadModel with this model's logits.

    A looped model becomes as many layers as it takes steps: `depth`, or as many as it was trained for. Biases
    that are left out are zeros; rows that pad the vocabulary stay. Raises UserError for what GPT-2 cannot be,
    naming a switch.
    """
    if beyond := config.beyond_gpt2():
        raise UserError(f"model.{beyond[0]}: Hugging Face's GPT-2 has no place for it, so there is no export")
    if depth is not None and not config.loops:
        raise UserError(
            f"recurrent depth {depth}: this model has no loop, just its {config.n_layer} layers; leave it out"
        )
    blocks = _blocks(model, depth)
    return _config(config, len(blocks)), _parameters(model, blocks)


def save_gpt2(values: dict[str, Any], tensors: Tensors, folder: Path) -> None:
    """Write what `to_gpt2` gave as a folder that `GPT2LMHeadModel.from_pretrained` loads."""
    # Some readers want to be told that the tensors are PyTorch's.
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, values)


def _blocks(model: GPT, depth: int | None) -> list[Block]:
    """The model's layers in order, the shared one as often as it is applied."""
    trunk = model.trunk
    layers = trunk.blocks()
    if isinstance(trunk, Recurrence):
        layers = [*trunk.prelude, *[trunk.step.block] * (depth or trunk.depth), *trunk.coda]
    return [layer.block if isinstance(layer, LayerDropout) else layer for layer in layers]  # type: ignore[misc]


def _config(config: GPTConfig, n_layer: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu",  # the exact one; GPT-2's own is "gelu_new"
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": n_layer,
        "n_head": config.n_head,
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,  # left out, they would be GPT-2's, beyond most vocabularies
        "eos_token_id": None,
    }


def _parameters(model: GPT, blocks: list[Block]) -> Tensors:
    embed, head = model.embed, model.head
    assert embed.wpe is not None
    tensors: Tensors = {
        "transformer.wte.weight": embed.wte.weight,
        "transformer.wpe.weight": embed.wpe.weight,
    }
    for number, block in enumerate(blocks):
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):  # theirs too
            tensors |= _weight_and_bias(f"transformer.h.{number}.{name}", block.get_submodule(name))
    tensors |= _weight_and_bias("transformer.ln_f", head.ln_f)
    tensors |= {f"lm_head.{name}": tensor for name, tensor in head.lm_head.state_dict().items()}  # if untied
    # A shared block comes several times, but a file has room for each tensor once: copies.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _weight_and_bias(name: str, part: nn.Module) -> Tensors:
    """Of a norm, or of a Linear as GPT-2's Conv1D, whose matrix is (in, out)."""
    state = part.state_dict()
    weight = state["weight"]
    return {
        f"{name}.weight": weight.T if isinstance(part, nn.Linear) else weight,
        f"{name}.bias": state.get("bias", weight.new_zeros(len(weight))),
    }
