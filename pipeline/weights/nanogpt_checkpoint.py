"""Reads nanoGPT's ckpt.pt as a model of ours, and writes one from a model.

nanoGPT's recurrent fork writes the same file with more switches; those that mean the same here are read.
nano-gpt's checkpoint_*.bin, which has tensors of the same names, is read too.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig, Model
from pipeline.config.reading import check_file
from pipeline.config.validation import validate
from pipeline.weights.gpt2 import PARTS, unrolled_layers
from pipeline.weights.model_folder import Weights

CHECKPOINT_FILE = "ckpt.pt"
WRITERS = f"name a {CHECKPOINT_FILE} written by nanoGPT, or a checkpoint_*.bin written by nano-gpt"
# The first bytes of a file in PyTorch's older format, which is no zip file; it was the default before 1.6.
OLD_FORMAT = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
WRITTEN = {"model", "model_args", "config"}  # the keys that sample.py reads; train.py writes more

# The switches in model_args that mean the same here, in nanoGPT and in its fork.
NANOGPT_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")
FORK_ARGS = (
    "share_parameters_across_layers",
    "recurrent_shared_weights",
    "recurrent_depth",
    "scale_loss_by_n_layer",
    "fixed_edge_blocks",
    "recurrent_extra_layernorm",
    "recurrent_noise_mode",
    "recurrent_noise_std",
    "recurrent_noise_concat_dim",
    "moe",
    "moe_num_experts",
    "moe_top_k",
    "share_moe_experts",
    "layer_dropout",
    "sticky_dropout",
)
NEED_LOOP_THERE = ("recurrent_shared_weights", "layer_dropout")  # the fork ignores these without a loop

# With these switches, the fork computes something that no model here does.
UNSUPPORTED = {
    "learned_stopping": "its gate reads the mean over the sequence, so a token sees the future",
    "attentive_stopping": "its gate reads the mean over the sequence, so a token sees the future",
    "use_rmsnorm": "its blocks have four norms each",
    "moe_hard_routing": "it does not weight an expert's output by its probability",
}
UNSUPPORTED_PREFIXES = ("learned_stopping_", "attentive_stopping_")

# What all models of nano-gpt have; the other switches of nanoGPT are in its config.
NANO_GPT_ALWAYS = {"bias": True, "dropout": 0.0, "activation": "gelu_new"}

NAMES = (  # prefixes of parameter names: here, in nanoGPT
    ("embed.", "transformer."),
    ("head.ln_f.", "transformer.ln_f."),
    ("head.lm_head.", "lm_head."),
    ("trunk.h.", "transformer.h."),
    ("trunk.prelude.0.", "fixed_head."),
    ("trunk.step.noise.mix.", "recurrent_noise_proj."),
    ("trunk.step.block.", "transformer.h.0."),
    ("trunk.step.norm.", "recurrent_extra_ln."),
    ("trunk.coda.0.", "fixed_tail."),
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: a model's config, and its tensors under nanoGPT's names."""

    path: Path
    config: GPTConfig
    tensors: Mapping[str, torch.Tensor]

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        """The tensors under our names; `shapes` are the parameter shapes of our model with this config."""
        return _Tensors(self, shapes)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that nanoGPT, its fork or nano-gpt trained. Nothing in the file is executed.

    Raises UserError if the file cannot be read, if it holds anything but plain data, and, naming the switch,
    if no model here is equivalent.
    """
    found = _load(path)
    by_nano_gpt = "model_state_dict" in found
    keys = ("model_state_dict", "config") if by_nano_gpt else ("model", "model_args")
    tensors, args = (found.get(key) for key in keys)
    if not isinstance(tensors, dict) or not isinstance(args, dict):
        raise UserError(f"{path}: no {' and '.join(keys)} in it; {WRITERS}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {name!r} in {keys[0]} is not a tensor's name; {WRITERS}")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{path}: {name} in {keys[0]} is not a tensor but of type {type(tensor).__name__}; {WRITERS}"
            )
    tensors = {
        name.removeprefix("_orig_mod."): tensor  # a prefix from torch.compile
        for name, tensor in tensors.items()
        if not name.endswith(".attn.bias")  # the causal mask, which nano-gpt and old versions save
    }
    embedding, lm_head = tensors.get("transformer.wte.weight"), tensors.get("lm_head.weight")
    tied = embedding is not None and lm_head is not None and torch.equal(embedding, lm_head)
    if tied:
        del tensors["lm_head.weight"]
    config = _nano_gpt_config(args, tied, path) if by_nano_gpt else _config(args, tied, path)
    return Checkpoint(path, config, tensors)


def is_written(path: Path) -> bool:
    """Whether a ckpt.pt was written by `write_checkpoint`; one of nanoGPT's training holds more."""
    try:
        return _load(path).keys() == WRITTEN
    except UserError:  # damaged, and so perhaps somebody's training
        return False


def write_checkpoint(
    tensors: Mapping[str, torch.Tensor],
    config: GPTConfig,
    vocab_size: int,
    dataset: str,
    path: Path,
    depth: int | None = None,
) -> int:
    """Write a ckpt.pt for nanoGPT's sample.py, and return how many layers it has.

    `tensors` are the model's, under our names. A loop is unrolled `depth` times, by default as many times as
    it was trained for. Embedding rows from `vocab_size` on are padding and left out. `dataset` is the folder
    in nanoGPT's data/ whose meta.pkl sample.py reads. Raises UserError naming the switch if nanoGPT does not
    support the model.
    """
    beyond = [*config.beyond_gpt2(), *config.changed("tie_word_embeddings")]
    if beyond:
        raise UserError(
            f"model.{beyond[0]}: nanoGPT does not support it; train a model as the preset nanogpt does"
        )
    assert vocab_size <= config.vocab_size, "the tokenizer has ids that the model lacks"
    layers = unrolled_layers(config, depth)
    args = {name: getattr(config, name) for name in NANOGPT_ARGS}
    found = {
        "model": dict(_renamed(tensors, layers, vocab_size)),
        "model_args": args | {"n_layer": len(layers), "vocab_size": vocab_size},
        "config": {"dataset": dataset},
    }
    assert found.keys() == WRITTEN
    torch.save(found, path)
    return len(layers)


def _load(path: Path) -> dict[str, Any]:
    check_file(path, missing=WRITERS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unreadable file raises an error anyway
            # Memory-mapped, so that the optimizer state, two thirds of the file, is not read.
            mapped = not _is_old(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {WRITERS}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused, it asks for {_asked_for(path)}; only tensors and plain values are read, and "
            "nothing was executed"
        ) from None
    except Exception:  # for a damaged file, PyTorch raises many kinds of errors
        raise UserError(f"{path}: damaged, or not written by torch.save; copy it again") from None
    return found if isinstance(found, dict) else {}


def _is_old(path: Path) -> bool:
    """Whether the file is in PyTorch's older format, which cannot be memory-mapped."""
    with path.open("rb") as file:
        return file.read(len(OLD_FORMAT)) == OLD_FORMAT


def _asked_for(path: Path) -> str:
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # PyTorch cannot analyze every pickle
        names = []
    return ", ".join(names[:5]) or "other types of objects"


def _config(args: dict[str, Any], tied: bool, path: Path) -> GPTConfig:
    for name, why in UNSUPPORTED.items():
        if args.get(name) and (name != "moe_hard_routing" or args.get("moe")):
            raise UserError(
                f"{path}: {name} = {args[name]}: {why}; no model here does that, so train a new one"
            )
    for name in sorted(args.keys() - {*NANOGPT_ARGS, *FORK_ARGS, *UNSUPPORTED}, key=str):
        if not str(name).startswith(UNSUPPORTED_PREFIXES):
            raise UserError(
                f"{path}: unknown switch {name} in model_args; only those of nanoGPT and its fork can be read"
            )
    names = [*NANOGPT_ARGS, *(name for name in FORK_ARGS if _has_effect(name, args))]
    values = {"bias": True, "dropout": 0.0} | {name: args[name] for name in names if name in args}
    if args.get("n_layer") == 1 and not args.get("share_parameters_across_layers"):
        values.pop("share_moe_experts", None)  # there is no other block to share experts with
    values["moe_dummy"] = values.get("moe", False)  # the fork's mixtures always have one
    return validate(GPTConfig, values | {"tie_word_embeddings": tied}, f"{path}: model_args")


def _nano_gpt_config(args: dict[str, Any], tied: bool, path: Path) -> GPTConfig:
    unknown = args.keys() - (set(NANOGPT_ARGS) - NANO_GPT_ALWAYS.keys())
    if unknown:
        name = min(unknown, key=str)
        raise UserError(f"{path}: unknown switch {name} in config; only those of nano-gpt can be read")
    return validate(GPTConfig, {**args, **NANO_GPT_ALWAYS, "tie_word_embeddings": tied}, f"{path}: config")


def _has_effect(name: str, args: Mapping[str, Any]) -> bool:
    """Whether a switch has an effect in the fork, which ignores the settings of a feature that is off.

    Here, such a setting would be an error.
    """
    needs = "loops" if name in NEED_LOOP_THERE else Model.facts(name).needs
    if name.startswith("recurrent_noise") and not (
        args.get("recurrent_noise_mode", "none") != "none" and args.get("recurrent_noise_std")
    ):
        return False
    if needs == "loops":
        return bool(args.get("share_parameters_across_layers"))
    return not needs or (bool(args.get(needs)) and _has_effect(needs, args))


class _Tensors(Weights):
    """nanoGPT's tensors under our names, as float32."""

    def __init__(self, checkpoint: Checkpoint, own: Mapping[str, tuple[int, ...]]) -> None:
        tensors, config = checkpoint.tensors, checkpoint.config
        self.path = checkpoint.path
        self._tensors = tensors
        self._config = config
        self._sources = {name: _sources(name, config.moe_num_experts) for name in own}
        self._unfit: dict[str, str] = {}  # our name: the first source missing or misshapen
        self.shapes = dict(own)
        for name, shape in own.items():
            experts, part = (shape[:1], shape[1:]) if _is_expert_weight(name) else ((), shape)
            for source in reversed(self._sources[name]):
                if source not in tensors:
                    self._unfit[name] = source
                    self.shapes.pop(name, None)
                elif tensors[source].shape != part:
                    self._unfit[name] = source
                    self.shapes[name] = (*experts, *tensors[source].shape)
        self.shapes |= {name: tuple(tensors[name].shape) for name in self._left_over()}

    def read(self, name: str) -> torch.Tensor:
        parts = [self._tensors[source].float() for source in self._sources[name]]
        if not parts:
            return torch.zeros(self.shapes[name])
        tensor = torch.stack(parts) if _is_expert_weight(name) else parts[0].contiguous().clone()
        if name == "trunk.step.noise.mix.weight":  # the fork's replaces the stream, ours adds to it
            tensor[:, : self._config.n_embd] -= torch.eye(self._config.n_embd)
        return tensor

    def name_in_file(self, name: str) -> str:
        return self._unfit.get(name, name)

    def _left_over(self) -> set[str]:
        """The names of the tensors in the file that no parameter here uses."""
        used = {source for sources in self._sources.values() for source in sources}
        left = self._tensors.keys() - used
        if not self._config.share_moe_experts:
            return left
        # The fork lists the shared experts in every block.
        shared = {name.partition(".mlp.")[2] for name in used if _is_expert_weight(name)}
        return {name for name in left if name.partition(".mlp.")[2] not in shared}


def _sources(name: str, num_experts: int) -> list[str]:
    """The names in the file of the tensors that make up parameter `name`: one, or one per expert."""
    if name.endswith("mlp.router.bias"):
        return []  # only we have this bias; it starts at zero
    for here, there in NAMES:
        if name.startswith(here):
            name = there + name.removeprefix(here)
            break
    name = name.replace(".block.", ".")  # layer dropout wraps the block here
    name = name.replace("mlp.router.scores.", "mlp.router.")
    if _is_expert_weight(name):
        return [name.replace("mlp.experts.", f"mlp.experts.{number}.") for number in range(num_experts)]
    return [name]


def _is_expert_weight(name: str) -> bool:
    return ".mlp.experts." in name


def _renamed(
    tensors: Mapping[str, torch.Tensor], layers: list[str], vocab_size: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters under nanoGPT's names. It stores matrices as (out, in), as we do."""
    wte = tensors["embed.wte.weight"].detach().cpu()[:vocab_size].clone()  # a slice would save all rows
    yield "transformer.wte.weight", wte
    yield "transformer.wpe.weight", tensors["embed.wpe.weight"].detach().cpu()
    parts = [
        (f"{layer}{part}", f"transformer.h.{number}.{part}")
        for number, layer in enumerate(layers)
        for part in PARTS
    ]
    for ours, theirs in [*parts, ("head.ln_f", "transformer.ln_f")]:
        for name in ("weight", "bias"):
            if (tensor := tensors.get(f"{ours}.{name}")) is not None:
                yield f"{theirs}.{name}", tensor.cpu()
    yield "lm_head.weight", wte
