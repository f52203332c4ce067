"""The variants of the model family by name, and the switches that each of them sets."""

from __future__ import annotations

from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.validation import suggest

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "shared": {"share_parameters_across_layers": True},
    "recurrent": {"recurrent_shared_weights": True},
    "edges": {
        "recurrent_shared_weights": True,
        "fixed_edge_blocks": True,
        "recurrent_prelude_injection": True,
    },
    "moe": {"moe": True},
    "moe-dummy": {"moe": True, "moe_dummy": True},
    "moe-hard": {"moe": True, "moe_hard_routing": True},
    "moe-shared": {"moe": True, "share_moe_experts": True},
    "layer-dropout": {"share_parameters_across_layers": True, "layer_dropout": 0.1},
    "sticky-dropout": {"share_parameters_across_layers": True, "sticky_dropout": 0.1},
    "stopping": {
        "recurrent_shared_weights": True,
        "learned_stopping": True,
        "learned_stopping_use_threshold": True,
    },
    "modern": {
        "position": "rotary",
        "norm": "rmsnorm",
        "activation": "relu2",
        "qk_norm": True,
        "value_embeddings": True,
        "tie_word_embeddings": False,
        "logit_softcap": 15.0,
    },
}


def overrides(name: str) -> list[str]:
    """A variant as `model.key=value` overrides. Raises UserError for an unknown name."""
    if name not in VARIANTS:
        known = list(VARIANTS)
        raise UserError(f"unknown variant {name}{suggest(name, known)} (there are {', '.join(known)})")
    return [f"model.{key}={str(value).lower()}" for key, value in VARIANTS[name].items()]
