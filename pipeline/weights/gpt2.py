"""GPT-2 in the format of transformers: converts config and weights to ours and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import Count, Fraction, GPTConfig
from pipeline.config.validation import Section, validate
from pipeline.storage.files import write_json
from pipeline.tokens.tokenizer_json import END_OF_TEXT
from pipeline.tokens.tokenizers import Tokenizer
from pipeline.weights.model_folder import CONFIG_FILE, WEIGHTS_FILE, Weights, read_config, write_tensors

Tensors = Mapping[str, torch.Tensor]

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
INDEX_FILE = "model.safetensors.index.json"  # maps tensors to files if there are several
PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")  # modules of a block
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers' Conv1D stores (in, out)
MASKS = (".attn.bias", ".attn.masked_bias")  # causal masks, which old versions saved

ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}  # their name: ours


class TheirConfig(Section, extra="ignore"):
    """The fields of transformers' config.json that matter here; missing ones have GPT2Config's defaults."""

    activation_function: str = "gelu_new"
    vocab_size: Count = 50257
    n_positions: Count = 1024
    n_embd: Count = 768
    n_layer: Count = 12
    n_head: Count = 12
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: Fraction = 0.1
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


def is_transformers(folder: Path) -> bool:
    """Whether transformers wrote the folder's config.json, for any kind of model."""
    values = read_config(folder / CONFIG_FILE)
    return "model_type" in values or "architectures" in values


def config_from_gpt2(folder: Path) -> GPTConfig:
    """The config of the transformers GPT-2 in `folder`. Raises UserError naming an unsupported field."""
    path = folder / CONFIG_FILE
    values = read_config(path)
    if values.get("model_type") != "gpt2":
        raise UserError(
            f"{path}: model_type = {values.get('model_type')}; only models of the type gpt2 can be loaded"
        )
    theirs = validate(TheirConfig, values, path)
    for name, expected in (
        ("n_inner", (None, 4 * theirs.n_embd)),
        ("layer_norm_epsilon", (1e-5,)),
        ("scale_attn_weights", (True,)),
        ("scale_attn_by_inverse_layer_idx", (False,)),
        ("add_cross_attention", (False,)),
        ("activation_function", tuple(ACTIVATIONS)),
    ):
        value = getattr(theirs, name)
        if value not in expected:
            known = " or ".join(str(value) for value in expected)
            raise UserError(f"{path}: {name} = {value}; only models with {known} can be loaded")
    ours = {
        "n_layer": theirs.n_layer,
        "n_head": theirs.n_head,
        "n_embd": theirs.n_embd,
        "block_size": theirs.n_positions,
        "bias": True,
        "dropout": theirs.resid_pdrop,
        "activation": ACTIVATIONS[theirs.activation_function],
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "vocab_size": theirs.vocab_size,
    }
    return validate(GPTConfig, ours, path)


class GPT2Weights(Weights):
    """The tensors of a transformers GPT-2 under our names, as float32, with matrices as (out, in)."""

    def __init__(self, folder: Path, config: GPTConfig) -> None:
        """Read the tensors' names and shapes. Raises UserError for a missing or damaged safetensors file."""
        self.path = folder / WEIGHTS_FILE
        self._paths = weight_files(folder)
        self._files: dict[str, Weights] = {}
        self._theirs: dict[str, str] = {}
        self.shapes = {}
        for file in map(Weights, self._paths):
            for theirs, shape in file.shapes.items():
                tied = theirs == "lm_head.weight" and config.tie_word_embeddings
                if tied or theirs.endswith(MASKS):
                    continue
                ours = _our_name(theirs)
                self._files[ours], self._theirs[ours] = file, theirs
                self.shapes[ours] = shape[::-1] if ours.endswith(TRANSPOSED) else shape

    def read(self, name: str) -> torch.Tensor:
        tensor = self._files[name].read(self._theirs[name])
        if name.endswith(TRANSPOSED):
            tensor = tensor.T
        return tensor.float().contiguous()

    @property
    def files(self) -> list[Path]:
        return self._paths

    def name_in_file(self, name: str) -> str:
        return self._theirs.get(name) or _their_name(name)


def weight_files(folder: Path) -> list[Path]:
    """The paths of a model's safetensors files.

    Files that the index names may be missing. Raises UserError if there is neither an index nor weights, and
    for an invalid index.
    """
    if not (folder / INDEX_FILE).exists():
        if not (folder / WEIGHTS_FILE).exists():
            raise UserError(
                f"{folder}: no {WEIGHTS_FILE}; other formats can run code, so load the model with "
                "transformers and save it again with `model.save_pretrained(folder)`"
            )
        return [folder / WEIGHTS_FILE]
    places = read_config(folder / INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{folder / INDEX_FILE}: no weight_map from tensors to files; copy the file again")
    return [folder / name for name in sorted(set(places.values()))]


def _our_name(theirs: str) -> str:
    name = theirs.removeprefix("transformer.")  # the GPT-2 on the hub lacks this prefix
    if name.startswith(("wte.", "wpe.")):
        return f"embed.{name}"
    if name.startswith(("ln_f.", "lm_head.")):
        return f"head.{name}"
    return f"trunk.{name}" if name.startswith("h.") else theirs


def _their_name(ours: str) -> str:
    name = ours.partition(".")[2]
    return name if name.startswith("lm_head") else f"transformer.{name}"


def to_gpt2(
    tensors: Tensors,
    config: GPTConfig,
    depth: int | None = None,
    vocab_size: int | None = None,
    end_of_text: int | None = None,
) -> tuple[dict[str, Any], Tensors]:
    """Convert a model to the `config.json` and the parameters of a GPT2LMHeadModel with the same logits.

    `tensors` are the model's, under our names. A loop is unrolled `depth` times, by default as many times as
    it was trained for. Missing biases become zeros. Embedding rows from `vocab_size` on are padding and left
    out. Raises UserError naming the switch if GPT-2 does not support the model.
    """
    if beyond := config.beyond_gpt2():
        raise UserError(
            f"model.{beyond[0]}: Hugging Face's GPT-2 does not support it; train a model as the preset "
            "nanogpt does"
        )
    rows = vocab_size or config.vocab_size
    assert rows <= config.vocab_size, "the tokenizer has ids that the model lacks"
    layers = unrolled_layers(config, depth)
    # Copies, because a shared block appears in several layers and safetensors refuses shared memory.
    theirs = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in _renamed(tensors, layers, rows)
    }
    return _config(config, len(layers), rows, end_of_text), theirs


def save_gpt2(values: dict[str, Any], tensors: Tensors, folder: Path) -> None:
    """Write the result of `to_gpt2` as a folder that `GPT2LMHeadModel.from_pretrained` loads."""
    # Some readers require metadata which says that the tensors are PyTorch's.
    write_tensors(dict(sorted(tensors.items())), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, values)


def tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, so that AutoTokenizer loads the `tokenizer.json` beside it.

    If the tokenizer has `<|endoftext|>`, that is the token for both the beginning and the end of a text.
    transformers drops a character that a `char` tokenizer does not know; here it is an error.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # GPT2Tokenizer would split into words first
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return config


def unrolled_layers(config: GPTConfig, depth: int | None = None) -> list[str]:
    """The prefix of the parameter names in each layer; that of a shared block comes several times.

    It comes `depth` times, by default as many times as the loop was trained for. Raises UserError for a
    `depth` without a loop.
    """
    block = "block." if config.layer_dropout else ""  # layer dropout wraps the block
    if config.loops:
        return [
            *(f"trunk.prelude.{number}.{block}" for number in range(config.prelude)),
            *[f"trunk.step.block.{block}"] * (depth or config.loop_depth),
            *(f"trunk.coda.{number}.{block}" for number in range(config.coda)),
        ]
    if depth is not None:
        raise UserError(
            f"recurrent depth {depth}: this model has {config.n_layer} layers and no loop; leave it out"
        )
    return [f"trunk.h.{number}.{block}" for number in range(config.n_layer)]


def _config(config: GPTConfig, n_layer: int, vocab_size: int, end_of_text: int | None) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": config.activation,
        "vocab_size": vocab_size,
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
        "bos_token_id": end_of_text,  # the default is GPT-2's id, outside most vocabularies
        "eos_token_id": end_of_text,
    }


def _renamed(tensors: Tensors, layers: list[str], vocab_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters under transformers' names, with matrices transposed to Conv1D's (in, out)."""
    yield "transformer.wte.weight", tensors["embed.wte.weight"][:vocab_size]
    yield "transformer.wpe.weight", tensors["embed.wpe.weight"]
    for number, layer in enumerate(layers):
        for part in PARTS:
            yield from _weight_and_bias(tensors, f"{layer}{part}", f"transformer.h.{number}.{part}")
    yield from _weight_and_bias(tensors, "head.ln_f", "transformer.ln_f")
    if "head.lm_head.weight" in tensors:
        yield "lm_head.weight", tensors["head.lm_head.weight"][:vocab_size]


def _weight_and_bias(tensors: Tensors, ours: str, theirs: str) -> Iterator[tuple[str, torch.Tensor]]:
    weight, bias = tensors[f"{ours}.weight"], tensors.get(f"{ours}.bias")
    yield f"{theirs}.weight", weight.T if weight.dim() == 2 else weight
    yield f"{theirs}.bias", weight.new_zeros(len(weight)) if bias is None else bias
