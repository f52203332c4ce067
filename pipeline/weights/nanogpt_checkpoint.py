"""nanoGPT's ckpt.pt, both ways: read into a model of ours, and written from one.

Its recurrent fork writes the same file with more switches in it; those that mean the same here are read.
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
from pipeline.config.validation import validate
from pipeline.weights.gpt2 import PARTS, unrolled_layers
from pipeline.weights.saved import Weights

CHECKPOINT_FILE = "ckpt.pt"
# How a file in PyTorch's format begins that is no zip; until 1.6 there was no other.
OLD_FORMAT = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
WRITTEN = {"model", "model_args", "config"}  # all that sample.py reads; training writes more

# The switches in model_args that mean the same here: nanoGPT's, and its fork's.
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
NEED_LOOP_THERE = ("recurrent_shared_weights", "layer_dropout")  # and not here

# The fork's own: it computes something else than any model here.
UNSUPPORTED = {
    "learned_stopping": "its gate reads the mean over the sequence, so a token sees the future",
    "attentive_stopping": "its gate reads the mean over the sequence, so a token sees the future",
    "use_rmsnorm": "its blocks have four norms each",
    "moe_hard_routing": "it does not weigh an expert by its probability",
}
UNSUPPORTED_PREFIXES = ("learned_stopping_", "attentive_stopping_")

NAMES = (  # how the names of parameters begin here, and there
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
    """What a ckpt.pt holds: a model's config, and its tensors by nanoGPT's names."""

    path: Path
    config: GPTConfig
    tensors: Mapping[str, torch.Tensor]

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        """The tensors under our names; `shapes` are those of our model of this config."""
        return _Tensors(self, shapes)


def read_checkpoint(path: Path) -> Checkpoint:
    """What nanoGPT, or its fork, has trained.

    Raises UserError for a file that cannot be read; for one with anything but plain data in it, of which
    nothing is executed; and for a model that does not exist here, naming the switch.
    """
    found = _load(path)
    tensors, args = found.get("model"), found.get("model_args")
    if not isinstance(tensors, dict) or not isinstance(args, dict):
        raise UserError(f"{path}: no model and model_args in it; name a {CHECKPOINT_FILE} of nanoGPT's")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise UserError(
                f"{path}: {name!r} in model is no tensor's name; name a {CHECKPOINT_FILE} of nanoGPT's"
            )
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name} in model is no tensor but a {type(tensor).__name__}")
    tensors = {
        name.removeprefix("_orig_mod."): tensor  # torch.compile's
        for name, tensor in tensors.items()
        if not name.endswith(".attn.bias")  # the causal mask, which old versions keep
    }
    reading, writing = tensors.get("transformer.wte.weight"), tensors.get("lm_head.weight")
    tied = reading is not None and writing is not None and torch.equal(reading, writing)
    if tied:
        del tensors["lm_head.weight"]
    config = _config(args, tied, path)
    return Checkpoint(path, config, tensors)


def is_written(path: Path) -> bool:
    """Whether a ckpt.pt is one that `write_checkpoint` wrote: no training of nanoGPT's is lost with it."""
    return _load(path).keys() == WRITTEN


def write_checkpoint(
    tensors: Mapping[str, torch.Tensor],
    config: GPTConfig,
    vocab_size: int,
    dataset: str,
    path: Path,
    depth: int | None = None,
) -> int:
    """Write the ckpt.pt that nanoGPT's sample.py reads, and return how many layers it has.

    `tensors` are a model's, by our names. A looped model becomes as many layers as it takes steps: `depth`,
    or as many as it was trained for. Rows from `vocab_size` on, which pad the vocabulary, are left out.
    `dataset` is the folder in nanoGPT's data/ whose meta.pkl sample.py reads. Raises UserError for a model
    that nanoGPT cannot be, naming the switch.
    """
    beyond = [*config.beyond_gpt2(), *config.changed("tie_word_embeddings")]
    if beyond:
        raise UserError(f"model.{beyond[0]}: nanoGPT has no place for it, so there is no export")
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it cannot read is an error
            # Mapped: of the optimizer's state, two thirds of the file, nothing is read.
            mapped = not _is_old(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        reason = error.strerror or "no such file"  # PyTorch's own error for that has no text
        raise UserError(f"{path}: {reason}; name a {CHECKPOINT_FILE} of nanoGPT's") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused, it asks for {_asked_for(path)}; only tensors and plain values are read, and "
            "nothing was executed"
        ) from None
    except Exception:  # what a damaged file raises is PyTorch's business
        raise UserError(f"{path}: damaged, or not written by torch.save; copy it again") from None
    return found if isinstance(found, dict) else {}


def _is_old(path: Path) -> bool:
    """Whether PyTorch wrote it in its older format, which cannot be mapped into memory."""
    with path.open("rb") as file:
        return file.read(len(OLD_FORMAT)) == OLD_FORMAT


def _asked_for(path: Path) -> str:
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it follows fewer kinds of pickles than there are
        names = []
    return ", ".join(names[:5]) or "something other than that"


def _config(args: dict[str, Any], tied: bool, path: Path) -> GPTConfig:
    for name, why in UNSUPPORTED.items():
        if args.get(name) and (name != "moe_hard_routing" or args.get("moe")):
            raise UserError(f"{path}: {name} = {args[name]}: {why}, unlike any model here; train one anew")
    for name in sorted(args.keys() - {*NANOGPT_ARGS, *FORK_ARGS, *UNSUPPORTED}, key=str):
        if not str(name).startswith(UNSUPPORTED_PREFIXES):
            raise UserError(
                f"{path}: unknown switch {name} in model_args; nanoGPT's and its fork's are known"
            )
    names = [*NANOGPT_ARGS, *(name for name in FORK_ARGS if _counts(name, args))]
    values = {"bias": True, "dropout": 0.0} | {name: args[name] for name in names if name in args}
    loops = args.get("share_parameters_across_layers")
    one_block = not args.get("fixed_edge_blocks") if loops else args.get("n_layer") == 1
    if one_block:  # which has none to share its experts with
        values.pop("share_moe_experts", None)
    return validate(GPTConfig, values | {"tie_word_embeddings": tied}, f"{path}: model_args")


def _counts(name: str, args: Mapping[str, Any]) -> bool:
    """Whether a switch does anything there: the fork ignores what is set for something that is off.

    Here that would be an error.
    """
    needs = "loops" if name in NEED_LOOP_THERE else Model.facts(name).needs
    if name.startswith("recurrent_noise") and not (
        args.get("recurrent_noise_mode", "none") != "none" and args.get("recurrent_noise_std")
    ):
        return False
    if needs == "loops":
        return bool(args.get("share_parameters_across_layers"))
    return not needs or (bool(args.get(needs)) and _counts(needs, args))


class _Tensors(Weights):
    """nanoGPT's tensors under our names, as float32."""

    def __init__(self, checkpoint: Checkpoint, own: Mapping[str, tuple[int, ...]]) -> None:
        tensors, config = checkpoint.tensors, checkpoint.config
        self.path = checkpoint.path
        self._tensors = tensors
        self._config = config
        self._sources = {name: _sources(name, config.moe_num_experts) for name in own}
        self._unfit: dict[str, str] = {}  # by our name, the first tensor that is missing or misshapen
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
        if name == "trunk.step.noise.mix.weight":  # theirs replaces the stream, ours adds to it
            tensor[:, : self._config.n_embd] -= torch.eye(self._config.n_embd)
        return tensor

    def name_in_file(self, name: str) -> str:
        return self._unfit.get(name, name)

    def _left_over(self) -> set[str]:
        """The names of tensors that no parameter of ours is made of."""
        used = {source for sources in self._sources.values() for source in sources}
        left = self._tensors.keys() - used
        if not self._config.share_moe_experts:
            return left
        # There the shared experts are listed in every block.
        shared = {name.partition(".mlp.")[2] for name in used if _is_expert_weight(name)}
        return {name for name in left if name.partition(".mlp.")[2] not in shared}


def _sources(name: str, num_experts: int) -> list[str]:
    """What a parameter of ours is made of: one tensor, or one for each expert."""
    if name.endswith("mlp.router.bias"):
        return []  # the balance of the load, which is level at first
    for here, there in NAMES:
        if name.startswith(here):
            name = there + name.removeprefix(here)
            break
    name = name.replace(".block.", ".")  # of layer dropout, a module here
    name = name.replace("mlp.router.scores.", "mlp.router.")
    if _is_expert_weight(name):
        return [name.replace("mlp.experts.", f"mlp.experts.{number}.") for number in range(num_experts)]
    return [name]


def _is_expert_weight(name: str) -> bool:
    return ".mlp.experts." in name


def _renamed(
    tensors: Mapping[str, torch.Tensor], layers: list[str], vocab_size: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by nanoGPT's names; it keeps a matrix as we do, (out, in)."""
    wte = tensors["embed.wte.weight"].detach().cpu()[:vocab_size].clone()  # or the file would hold all rows
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
