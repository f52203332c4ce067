"""The size of a model, from its config alone: parameters by part, saved tensors, FLOPs.

Nothing here describes the model a second time. A model of few layers and a short context is built on the meta
device, which allocates no weights, and its counts are extrapolated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.model.build import build_on_meta
from pipeline.model.gpt import GPT
from pipeline.model.kinds import kind_of
from pipeline.model.moe import Router
from pipeline.storage.machine import binary, memory

# The part that a parameter belongs to: the first pattern found in its name decides.
PARTS = {
    r"\.wte\.": "token embedding",
    r"\.wpe\.": "position embedding",
    r"\.vte\.": "value embedding",
    r"\.lm_head\.": "output projection",
    r"\.attn\.": "attention",
    r"\.mlp\.router\.": "routers",
    r"\.mlp\.experts\.": "experts",
    r"\.mlp\.": "feed-forward",
    r"\.halting\.": "stopping gate",
    r"\.injection\.": "injection of the prelude",
    r"\.noise\.": "noise",
    r"\.(ln_1|ln_2|ln_f|norm)\.": "norms",
}

OTHER = "other"

# Every count is affine in each of these: a base, and the same amount more for each further one.
REPEATED = ("n_layer", "recurrent_depth", "n_layers_prelude", "n_layers_coda", "block_size")
FEW = 2  # from here on: with shared experts, the first of the blocks differs from the others


@dataclass(frozen=True)
class ModelSize:
    """What a model needs, whatever the batch."""

    parts: Mapping[str, int]  # parameters by part
    tensors: int  # in its weights file
    values: int  # in these tensors: the parameters, and buffers such as a router's bias
    matrices: int  # parameters in the matrices of blocks, those that Muon updates
    table_bytes: int  # of tables that are computed and not saved, such as rotary positions
    applications: int  # of blocks to a token; a shared block counts once per application
    flops_per_token: int  # forward and backward, see `GPT.flops_per_token`
    experts_per_token: float  # that compute a token in each mixture, on average; 0 without any

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())


def model_size(config: GPTConfig) -> ModelSize:
    """The size of the model that `build_gpt(config)` builds, without building it.

    Exact, in memory and time that do not grow with the depth or the context.
    """
    fewer = config.model_copy(update={"recurrent_max_depth": None})  # of no weight; a table has this length
    counts = _extrapolated(fewer, REPEATED)
    parts = {part: counts.pop(part) for part in (*PARTS.values(), OTHER) if counts[part]}
    return ModelSize(parts, **{field.name: counts[field.name] for field in fields(ModelSize)[1:]})


def check_size(config: GPTConfig, tensors: int, path: object) -> None:
    """Raise UserError if a model with this config is far larger than the weights in `path`.

    `tensors` is how many are there. So a wrong config costs no more time and memory than the weights do.
    Smaller differences, and shapes, which cost nothing on the meta device, are left to `load_weights`, which
    names the tensors.
    """
    size = model_size(config)
    if size.tensors > max(1000, 2 * tensors):
        raise UserError(
            f"{path}: has {tensors:,} tensors, but its config (n_layer = {config.n_layer}) asks for "
            f"{size.tensors:,}; it belongs to another model"
        )
    if size.table_bytes > memory().total:
        raise UserError(
            f"{path}: its config (block_size = {config.block_size}, position = {config.position}) asks for "
            f"{binary(size.table_bytes)} of tables, more than this machine's memory; it is damaged"
        )


def _extrapolated(config: GPTConfig, repeated: Sequence[str]) -> Counter[str]:
    """The counts of a config, from models that are built with at most FEW + 1 of each of these fields."""
    if not repeated:
        return _counted(build_on_meta(config))
    field, *others = repeated
    wanted = getattr(config, field)
    if wanted is None or wanted <= FEW:
        return _extrapolated(config, others)
    few, one_more = (
        _extrapolated(config.model_copy(update={field: number}), others) for number in (FEW, FEW + 1)
    )
    return Counter({key: few[key] + (wanted - FEW) * (one_more[key] - few[key]) for key in few | one_more})


def _counted(model: GPT) -> Counter[str]:
    """Every count of ModelSize, and the parameters of each part."""
    saved = model.state_dict()
    named = list(model.named_parameters())
    routers = [part for part in model.modules() if isinstance(part, Router)]
    counts: Counter[str] = Counter(
        tensors=len(saved),
        values=sum(tensor.numel() for tensor in saved.values()),
        matrices=sum(parameter.numel() for name, parameter in named if kind_of(name, parameter) == "matrix"),
        table_bytes=sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in saved),
        applications=len(model.trunk.blocks()),
        flops_per_token=model.flops_per_token(),
        experts_per_token=max((router.experts_per_token for router in routers), default=0),  # type: ignore[arg-type]
    )
    for name, parameter in named:
        counts[_part(name)] += parameter.numel()
    return counts


def _part(name: str) -> str:
    return next((part for pattern, part in PARTS.items() if re.search(pattern, name)), OTHER)
