"""The model's switches: their defaults, what the fork's command lines mean, one line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic_core import PydanticUndefined

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig, Model
from pipeline.config.presets import composed
from pipeline.model.build import build_gpt
from pipeline.model.load import parameter_shapes
from pipeline.model.recurrence import Recurrence
from tests import tiny
from tests.conftest import Ended
from tests.family import VARIANTS

PLAIN = composed("nanogpt", tiny.ROOT / "presets")


def model_section(*switches: str) -> Model:
    return PLAIN.with_overrides([f"model.{switch}" for switch in switches]).model


def test_nanogpts_preset_is_the_plain_gpt2() -> None:
    """Every switch is at its default, which is what a saved config that knows nothing of it means."""
    fields = Model.model_fields.items()
    defaults = {name: field.default for name, field in fields if field.default is not PydanticUndefined}
    assert len(defaults) == len(Model.model_fields) - 6, "the sizes alone have no default"
    assert {name: getattr(PLAIN.model, name) for name in defaults} == defaults


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_allowed_in_the_file(name: str) -> None:
    changes = VARIANTS[name]
    section = model_section("n_head=2", "n_embd=16", *(f"{k}={str(v).lower()}" for k, v in changes.items()))
    assert {key: getattr(section, key) for key in changes} == changes


LOOP = (
    "needs one block at every layer: set share_parameters_across_layers or recurrent_shared_weights to true"
)
RECURRENCE = "needs recurrent_shared_weights = true, or leave it at its default"
MOE = "needs moe = true, or leave it at its default"
STOPPING = "needs learned_stopping = true, or leave it at its default"
SHARED = "share_parameters_across_layers=true "
RECURRENT = "recurrent_shared_weights=true "
GATE = f"{RECURRENT}learned_stopping=true "


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        # experts
        ("moe=true moe_top_k=0", "model.moe_top_k = 0: should be greater than or equal to 1"),
        ("moe=true moe_top_k=-1", "model.moe_top_k = -1: should be greater than or equal to 1"),
        (
            "moe=true moe_dummy=true moe_top_k=6",
            "moe_top_k = 6 is above moe_num_experts + 1 = 5 (the dummy counts too); lower it",
        ),
        (
            "moe=true moe_top_k=5 moe_hard_routing=true",
            "moe_top_k = 5 is above moe_num_experts = 4; lower it",
        ),
        ("moe=true moe_num_experts=2 moe_top_k=3", "moe_top_k = 3 is above moe_num_experts = 2; lower it"),
        ("moe_dummy=true", f"moe_dummy = true {MOE}"),
        ("moe=true moe_dummy_share=0.2", "moe_dummy_share = 0.2 needs moe_dummy = true, or leave it at"),
        ("moe=true moe_num_experts=0", "model.moe_num_experts = 0: should be greater than or equal to 1"),
        ("moe=true moe_aux_loss_weight=-1.0", "model.moe_aux_loss_weight = -1.0: should be greater than"),
        ("moe_hard_routing=true", f"moe_hard_routing = true {MOE}"),
        ("share_moe_experts=true", f"share_moe_experts = true {MOE}"),
        ("moe_aux_loss_weight=0.01", f"moe_aux_loss_weight = 0.01 {MOE}"),
        ("moe_z_loss_weight=0.01", f"moe_z_loss_weight = 0.01 {MOE}"),
        (
            "moe=true moe_dummy=true moe_dummy_share=0.5",
            "moe_dummy_share = 0.5 cannot be reached: a token chooses the dummy at most once",
        ),
        (
            "moe=true moe_dummy=true moe_top_k=3 moe_dummy_share=0.34",
            "moe_dummy_share = 0.34 cannot be reached: ",
        ),
        (
            "moe=true moe_dummy=true moe_dummy_share=0.2 moe_bias_update_rate=0.0",
            "moe_dummy_share = 0.2 needs updates of the selection bias, but moe_bias_update_rate = 0 turns",
        ),
        (
            "n_layer=1 moe=true share_moe_experts=true",
            "share_moe_experts = true, but there is only one layer; set it to false",
        ),
        # a loop
        (
            f"{RECURRENT}recurrent_depth_spread=0.0 recurrent_max_depth=9",
            "recurrent_max_depth = 9 limits a varying depth, but recurrent_depth_spread = 0 fixes the depth",
        ),
        (f"{RECURRENT}recurrent_depth_spread=1e200", "model.recurrent_depth_spread = 1e+200: should be less"),
        (f"{RECURRENT}recurrent_depth_spread=0.0 recurrent_backprop_depth=5", "is above 4, the most steps"),
        (f"{SHARED}n_layer=1 sticky_dropout=0.1", "sticky_dropout cannot shorten a loop of one step"),
        (f"{SHARED}n_layer=1 learned_stopping=true", "learned_stopping cannot shorten a loop of one step"),
        (f"{RECURRENT}recurrent_depth=0", "model.recurrent_depth = 0: should be greater than or equal to 1"),
        ("recurrent_depth=-3", "model.recurrent_depth = -3: should be greater than or equal to 1"),
        (f"{SHARED}recurrent_max_depth=8", f"recurrent_max_depth = 8 {RECURRENCE}"),
        (f"{SHARED}scale_loss_by_n_layer=true", f"scale_loss_by_n_layer = true {RECURRENCE}"),
        (f"{RECURRENT}recurrent_depth_spread=-0.5", "model.recurrent_depth_spread = -0.5: should be greater"),
        (
            f"{RECURRENT}recurrent_max_depth=3",
            "recurrent_max_depth = 3 is below the mean, recurrent_depth = 4; raise it",
        ),
        (
            f"{RECURRENT}recurrent_max_depth=8 scale_loss_by_n_layer=true",
            "recurrent_max_depth = 8 applies to a log-normal depth, but scale_loss_by_n_layer = true draws",
        ),
        (
            f"{RECURRENT}recurrent_depth_spread=0.0 scale_loss_by_n_layer=true",
            "recurrent_depth_spread = 0.0 applies to a log-normal depth, but scale_loss_by_n_layer = true",
        ),
        (f"{SHARED}recurrent_backprop_depth=0", "model.recurrent_backprop_depth = 0: should be greater than"),
        (
            f"{SHARED}recurrent_backprop_depth=4",
            "recurrent_backprop_depth = 4 is above 3, the most steps in training; lower it",
        ),
        (f"{RECURRENT}recurrent_backprop_depth=9", "recurrent_backprop_depth = 9 is above 8, the most steps"),
        ("fixed_edge_blocks=true", f"fixed_edge_blocks = true {LOOP}"),
        ("n_layers_prelude=1", f"n_layers_prelude = 1 {LOOP}"),
        ("n_layers_coda=1", f"n_layers_coda = 1 {LOOP}"),
        (f"{SHARED}n_layers_coda=-1", "model.n_layers_coda = -1: should be greater than or equal to 0"),
        ("recurrent_prelude_injection=true", f"recurrent_prelude_injection = true {LOOP}"),
        ("recurrent_extra_layernorm=true", f"recurrent_extra_layernorm = true {LOOP}"),
        ("recurrent_backprop_depth=2", f"recurrent_backprop_depth = 2 {LOOP}"),
        (
            f"{SHARED}fixed_edge_blocks=true n_layers_prelude=0 n_layers_coda=0",
            "fixed_edge_blocks = true contradicts n_layers_prelude = n_layers_coda = 0; drop one of them",
        ),
        # noise
        ("recurrent_noise_mode=add recurrent_noise_std=0.1", f"recurrent_noise_mode = add {LOOP}"),
        ("recurrent_noise_std=0.1", f"recurrent_noise_std = 0.1 {LOOP}"),
        (
            f"{RECURRENT}recurrent_noise_mode=concat recurrent_noise_std=-1",
            "model.recurrent_noise_std = -1: should be greater than or equal to 0",
        ),
        (
            f"{RECURRENT}recurrent_noise_mode=concat recurrent_noise_std=0.1 recurrent_noise_concat_dim=0",
            "model.recurrent_noise_concat_dim = 0: should be greater than or equal to 1",
        ),
        (
            f"{RECURRENT}recurrent_noise_mode=add recurrent_noise_std=0.1 recurrent_noise_concat_dim=4",
            "recurrent_noise_concat_dim = 4 needs recurrent_noise_mode = concat, not add",
        ),
        (
            f"{RECURRENT}recurrent_noise_mode=add",
            "recurrent_noise_mode = add contradicts recurrent_noise_std = 0.0; for noise set both",
        ),
        (
            f"{RECURRENT}recurrent_noise_std=0.1",
            "recurrent_noise_mode = none contradicts recurrent_noise_std = 0.1",
        ),
        (
            f"{RECURRENT}recurrent_noise_mode=gauss",
            "model.recurrent_noise_mode = 'gauss': should be 'none', 'add'",
        ),
        # leaving layers out
        ("layer_dropout=1.0", "model.layer_dropout = 1.0: should be less than 1"),
        (f"{SHARED}sticky_dropout=-0.1", "model.sticky_dropout = -0.1: should be greater than or equal to 0"),
        ("sticky_dropout=0.1", f"sticky_dropout = 0.1 {LOOP}"),
        ("learned_stopping=true", f"learned_stopping = true {LOOP}"),
        (
            f"{GATE}sticky_dropout=0.1",
            "learned_stopping = true contradicts sticky_dropout = 0.1: both end the loop; set only one",
        ),
        (f"{RECURRENT}learned_stopping_warmup_steps=9", f"learned_stopping_warmup_steps = 9 {STOPPING}"),
        *(
            (
                f"{GATE}learned_stopping_use_threshold=true learned_stopping_threshold={threshold}",
                f"model.learned_stopping_threshold = {threshold}: should be {bound}",
            )
            for threshold, bound in (
                ("0.0", "greater than 0"),
                ("-0.5", "greater than 0"),
                ("1.0", "less than 1"),
                ("1.5", "less than 1"),
            )
        ),
        ("learned_stopping_threshold=1.5", "model.learned_stopping_threshold = 1.5: should be less than 1"),
        (
            f"{GATE}learned_stopping_target_depth=2.0",
            "learned_stopping_target_depth = 2.0 needs learned_stopping_controller_weight above 0",
        ),
        (
            f"{GATE}learned_stopping_controller_weight=0.1 learned_stopping_target_depth=5.0",
            "learned_stopping_target_depth = 5.0 is above the loop's 4 steps; lower it",
        ),
        (
            f"{GATE}learned_stopping_temperature=0.0",
            "model.learned_stopping_temperature = 0.0: should be greater",
        ),
        (
            f"{GATE}learned_stopping_min_prob=0.5",
            "model.learned_stopping_min_prob = 0.5: should be less than 0.5",
        ),
        # parts of a block
        ("n_kv_head=2", "n_kv_head = 2 does not divide n_head = 5; try n_kv_head = 1"),
        ("n_kv_head=10", "n_kv_head = 10 does not divide n_head = 5; try n_kv_head = 1"),
        (
            "position=rotary n_head=32",
            "position = rotary rotates pairs of channels, but n_embd / n_head = 5 is odd; choose another",
        ),
        ("position=sinus", "model.position = 'sinus': should be 'learned', 'rotary' or 'alibi'"),
        ("logit_softcap=0.0", "model.logit_softcap = 0.0: should be greater than 0"),
    ],
)
def test_what_contradicts_itself_or_would_do_nothing_gets_one_line(switches: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        model_section(*switches.split())
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "switches",
    [
        "moe=true moe_dummy=true moe_top_k=5",
        "moe=true moe_dummy=true moe_num_experts=1 moe_top_k=2",
        "moe=true moe_num_experts=1 moe_top_k=1",
        f"{RECURRENT}recurrent_depth=1 recurrent_max_depth=1",
        f"{RECURRENT}recurrent_backprop_depth=8",
        f"{RECURRENT}fixed_edge_blocks=true n_layers_prelude=0",
        f"{RECURRENT}{SHARED}recurrent_prelude_injection=true",
        f"{RECURRENT}recurrent_noise_mode=concat recurrent_noise_std=1 recurrent_noise_concat_dim=1",
        f"{RECURRENT}fixed_edge_blocks=true moe=true share_moe_experts=true sticky_dropout=0.1",
        f"{GATE}scale_loss_by_n_layer=true layer_dropout=0.1",
        f"{GATE}learned_stopping_use_threshold=true learned_stopping_threshold=0.99",
        "n_kv_head=5",
        "position=alibi n_head=32",
    ],
)
def test_what_makes_sense_is_allowed(switches: str) -> None:
    model_section(*switches.split())


def small(switches: str) -> torch.nn.Module:
    values = model_section("n_head=2", "n_embd=16", *switches.split()).model_dump()
    return build_gpt(GPTConfig(**values, vocab_size=11))


@pytest.mark.parametrize("more", ["", "layer_dropout=0.1", "sticky_dropout=0.1", "learned_stopping=true"])
def test_recurrent_shared_weights_alone_implies_sharing(more: str) -> None:
    alone = small(f"{RECURRENT}{more}")
    assert isinstance(alone.trunk, Recurrence)
    both = small(f"{RECURRENT}{SHARED}{more}")
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (alone, both)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_hard_routing_picks_one_expert_whatever_top_k_says(top_k: int) -> None:
    model = small(f"moe=true moe_hard_routing=true moe_top_k={top_k}")
    router = model.get_submodule("trunk.h.0.mlp.router")
    assert router(torch.randn(7, 16)).chosen.shape == (7, 1)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ("", []),
        ("share_parameters_across_layers=true sticky_dropout=0.1 layer_dropout=0.1", []),
        (f"{RECURRENT}recurrent_noise_mode=add recurrent_noise_std=0.1", []),
        ("n_kv_head=5", []),
        ("n_kv_head=1 logit_softcap=30.0", ["n_kv_head = 1", "logit_softcap = 30.0"]),
        (
            f"{RECURRENT}recurrent_noise_mode=concat recurrent_noise_std=0.1",
            ["recurrent_noise_mode = concat"],
        ),
        (
            f"{GATE}recurrent_extra_layernorm=true",
            ["recurrent_extra_layernorm = true", "learned_stopping = true"],
        ),
    ],
)
def test_what_gpt2_has_no_place_for(switches: str, expected: list[str]) -> None:
    assert model_section(*switches.split()).beyond_gpt2() == expected


@pytest.mark.parametrize("name", Model.model_fields)
def test_what_a_switch_needs_is_a_switch_or_a_property(name: str) -> None:
    needs = Model.facts(name).needs
    assert not needs or needs in Model.model_fields or isinstance(getattr(Model, needs), property)


# For each switch that changes no weights: what it needs, and another value than its default.
FREE: dict[str, str] = {
    "dropout": "dropout=0.3",
    "recurrent_depth": f"{RECURRENT}recurrent_depth=7",
    "recurrent_depth_spread": f"{RECURRENT}recurrent_depth_spread=0.1",
    "recurrent_max_depth": f"{RECURRENT}recurrent_max_depth=5",
    "scale_loss_by_n_layer": f"{RECURRENT}scale_loss_by_n_layer=true",
    "recurrent_backprop_depth": f"{RECURRENT}recurrent_backprop_depth=1",
    "recurrent_noise_mode": f"{RECURRENT}recurrent_noise_mode=add recurrent_noise_std=0.1",
    "recurrent_noise_std": f"{RECURRENT}recurrent_noise_mode=add recurrent_noise_std=0.2",
    "moe_dummy_share": "moe=true moe_dummy=true moe_dummy_share=0.2",
    "moe_bias_update_rate": "moe=true moe_bias_update_rate=0.1",
    "moe_aux_loss_weight": "moe=true moe_aux_loss_weight=0.1",
    "moe_z_loss_weight": "moe=true moe_z_loss_weight=0.1",
    "sticky_dropout": f"{RECURRENT}sticky_dropout=0.1",
    "learned_stopping_controller_weight": f"{GATE}learned_stopping_controller_weight=0.1",
    "learned_stopping_target_depth": f"{GATE}learned_stopping_controller_weight=0.1 "
    "learned_stopping_target_depth=2.0",
    "learned_stopping_entropy_weight": f"{GATE}learned_stopping_entropy_weight=0.1",
    "learned_stopping_use_threshold": f"{GATE}learned_stopping_use_threshold=true",
    "learned_stopping_threshold": f"{GATE}learned_stopping_threshold=0.5",
}


def test_what_changes_no_weights_changes_none() -> None:
    assert [name for name in Model.model_fields if not Model.facts(name).changes_weights] == list(FREE)
    for name, switches in FREE.items():
        others = [switch for switch in switches.split() if not switch.startswith(f"{name}=")]
        if name.startswith("recurrent_noise"):
            others = RECURRENT.split()
        without, having = model_section(*others), model_section(*switches.split())
        assert getattr(without, name) != getattr(having, name)
        shapes = [
            parameter_shapes(GPTConfig(**section.model_dump(), vocab_size=11))
            for section in (without, having)
        ]
        assert shapes[0] == shapes[1], name


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train", "moe=true moe_top_k=0", "model.moe_top_k = 0: should be greater than or equal to 1"),
        ("train", "fixed_edge_blocks=true", f"fixed_edge_blocks = true {LOOP}"),
        ("check", f"{GATE}sticky_dropout=0.1", "learned_stopping = true contradicts sticky_dropout = 0.1"),
        ("sample", "recurrent_depth=0", "model.recurrent_depth = 0: should be greater than or equal to 1"),
    ],
)
def test_a_stage_stops_before_it_starts(
    tiny_project: Path, stage: Callable[..., Ended], name: str, arguments: str, expected: str
) -> None:
    ended = stage(name, *(word for switch in arguments.split() for word in ("-S", f"model.{switch}")))
    assert ended.status == 2
    assert ended.err.startswith("error: -S ") and ended.err.count("\n") == 1
    assert expected in ended.err
    assert sorted(path.name for path in tiny_project.iterdir()) == ["data", "params.yaml"]
