"""Every variant of the model that is tested: those that are compared, and combinations that make sense."""

from __future__ import annotations

from typing import Any

from bench.variants import VARIANTS as COMPARED

SHARED: dict[str, Any] = {"share_parameters_across_layers": True}
RECURRENT: dict[str, Any] = {"recurrent_shared_weights": True, "recurrent_depth": 3}
MOE: dict[str, Any] = {"moe": True, "moe_num_experts": 3}
STOPPING: dict[str, Any] = {
    "learned_stopping": True,
    "learned_stopping_controller_weight": 0.1,
    "learned_stopping_entropy_weight": 0.01,
}
THRESHOLD: dict[str, Any] = {"learned_stopping_use_threshold": True, "learned_stopping_threshold": 0.7}
MODERN: dict[str, Any] = {**COMPARED["modern"], "n_kv_head": 1}


def small(switches: dict[str, Any]) -> dict[str, Any]:
    """A variant with fewer steps and experts."""
    loop = {"recurrent_depth": 3} if switches.get("recurrent_shared_weights") else {}
    experts = {"moe_num_experts": 3} if switches.get("moe") else {}
    return {**switches, **loop, **experts}


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: small(switches) for name, switches in COMPARED.items()},
    "no-bias": {"bias": False},
    "rotary": {"position": "rotary"},
    "alibi": {"position": "alibi"},
    "rmsnorm": {"norm": "rmsnorm"},
    "relu2": {"activation": "relu2"},
    "swiglu": {"activation": "swiglu"},
    "qk-norm": {"qk_norm": True},
    "gqa": {"n_kv_head": 1},
    "value-embeddings": {"value_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "softcap": {"logit_softcap": 15.0},
    "shared-edges": {**SHARED, "fixed_edge_blocks": True},
    "shared-noise": {**SHARED, "recurrent_noise_mode": "add", "recurrent_noise_std": 0.1},
    "shared-stopping": {**SHARED, **STOPPING},
    "recurrent-uniform": {**RECURRENT, "scale_loss_by_n_layer": True},
    "recurrent-prelude-coda": {**RECURRENT, "n_layers_prelude": 2, "n_layers_coda": 1},
    "recurrent-noise-add": {**RECURRENT, "recurrent_noise_mode": "add", "recurrent_noise_std": 0.1},
    "recurrent-noise-concat": {
        **RECURRENT,
        "recurrent_noise_mode": "concat",
        "recurrent_noise_std": 0.1,
        "recurrent_noise_concat_dim": 4,
    },
    "recurrent-extra-norm": {**RECURRENT, "recurrent_extra_layernorm": True},
    "recurrent-backprop": {**RECURRENT, "recurrent_backprop_depth": 1},
    "recurrent-layer-dropout": {**RECURRENT, "layer_dropout": 0.3},
    "recurrent-sticky": {**RECURRENT, "sticky_dropout": 0.3},
    "recurrent-sticky-scaled": {**RECURRENT, "sticky_dropout": 0.3, "scale_loss_by_n_layer": True},
    "recurrent-stopping": {**RECURRENT, **STOPPING},
    "recurrent-threshold": {**RECURRENT, **STOPPING, **THRESHOLD},
    "recurrent-threshold-everything": {
        **RECURRENT,
        **STOPPING,
        **THRESHOLD,
        **MODERN,
        "fixed_edge_blocks": True,
        "recurrent_prelude_injection": True,
        "recurrent_noise_mode": "concat",
        "recurrent_noise_std": 0.1,
        "recurrent_extra_layernorm": True,
        "recurrent_backprop_depth": 2,
        "layer_dropout": 0.2,
    },
    "recurrent-moe": {**RECURRENT, **MOE},
    "recurrent-shared-experts": {**RECURRENT, **MOE, "share_moe_experts": True},  # the fork's experiment 15
    "recurrent-shared-experts-scaled": {  # and 16
        **RECURRENT,
        **MOE,
        "share_moe_experts": True,
        "scale_loss_by_n_layer": True,
    },
    "recurrent-edges-shared-experts": {
        **RECURRENT,
        **MOE,
        "fixed_edge_blocks": True,
        "share_moe_experts": True,
    },
    "moe-top-all": {**MOE, "moe_top_k": 3},
    "moe-dummy": {**MOE, "moe_dummy": True},
    "moe-dummy-share": {**MOE, "moe_dummy": True, "moe_dummy_share": 0.3},
    "moe-losses": {**MOE, "moe_aux_loss_weight": 0.01, "moe_z_loss_weight": 0.001},
    "moe-swiglu-no-bias": {**MOE, "activation": "swiglu", "bias": False},
    "layer-dropout-plain": {"layer_dropout": 0.3},
    "modern-gqa": MODERN,
    "layer-dropout-moe-modern": {"layer_dropout": 0.3, **MOE, **MODERN},
}
