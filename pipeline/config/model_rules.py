"""The rules of the `model` section: which switches contradict each other, and which weights fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.config.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.model import Model


def check(model: Model) -> None:
    """Raise ValueError if switches contradict each other, or if one needs another that is off."""
    for rule in (
        _heads_divide_width,
        _no_switch_is_ignored,
        _depths_agree,
        _noise_mode_fits_its_size,
        _enough_experts,
        _one_halting_policy,
    ):
        rule(model)


def check_start(model: Model, start: Model, name: str) -> None:
    """Raise UserError if `model` cannot start from weights of the shape `start`, which are called `name`.

    The two may differ in a shorter context, and in parameters that change no weights, such as dropout.
    """
    differing = []
    for field in type(model).model_fields:
        asked, has = getattr(model, field), getattr(start, field)
        shorter = field == "block_size" and asked < has
        may_change = not model.facts(field).changes_weights and "concat" not in (asked, has)
        if asked != has and not shorter and not may_change:
            differing.append(field)
    if not differing:
        return
    first, *others = differing
    asked, has = (_written(getattr(section, first)) for section in (model, start))
    also = f" (also different: {', '.join(others)})" if others else ""
    raise UserError(
        f"model.{first} = {asked}, but train.init_from = {name} has {has}{also}; make them equal, or let "
        f"`gpt-pipeline start-from {name}` do that"
    )


def _heads_divide_width(m: Model) -> None:
    if m.n_embd % m.n_head:
        nearest = max(m.n_head, round(m.n_embd / m.n_head) * m.n_head)
        raise ValueError(
            f"n_embd = {m.n_embd} is not divisible by n_head = {m.n_head}; try n_embd = {nearest}"
        )
    if m.n_kv_head is not None and m.n_head % m.n_kv_head:
        raise ValueError(f"n_kv_head = {m.n_kv_head} does not divide n_head = {m.n_head}; try n_kv_head = 1")
    head_size = m.n_embd // m.n_head
    if m.position == "rotary" and head_size % 2:
        raise ValueError(
            f"position = rotary rotates pairs of channels, but n_embd / n_head = {head_size} is odd; "
            "choose another n_head"
        )


def _no_switch_is_ignored(m: Model) -> None:
    sharing = "share_parameters_across_layers or recurrent_shared_weights"
    remedies = {
        "loops": f"one block at every layer: set {sharing} to true",
        "learned_stopping_controller_weight": "learned_stopping_controller_weight above 0",
    }
    for name in type(m).model_fields:
        facts = m.facts(name)
        if facts.needs and not facts.may_stay and not getattr(m, facts.needs):
            remedy = remedies.get(facts.needs, f"{facts.needs} = true")
            for switch in m.changed(name):
                raise ValueError(f"{switch} needs {remedy}, or leave it at its default")


def _depths_agree(m: Model) -> None:
    if m.recurrent_max_depth is not None and m.recurrent_max_depth < m.recurrent_depth:
        raise ValueError(
            f"recurrent_max_depth = {m.recurrent_max_depth} is below the mean, recurrent_depth = "
            f"{m.recurrent_depth}; raise it"
        )
    if m.recurrent_max_depth is not None and m.recurrent_depth_spread == 0:
        raise ValueError(
            f"recurrent_max_depth = {m.recurrent_max_depth} limits a varying depth, but "
            "recurrent_depth_spread = 0 fixes the depth; leave one of them at its default"
        )
    if m.max_depth == 1 and (m.learned_stopping or m.sticky_dropout) and m.loops:
        which = "learned_stopping" if m.learned_stopping else "sticky_dropout"
        raise ValueError(f"{which} cannot shorten a loop of one step; make the loop deeper")
    log_normal = m.changed("recurrent_max_depth", "recurrent_depth_spread")
    if log_normal and m.scale_loss_by_n_layer:
        raise ValueError(
            f"{log_normal[0]} applies to a log-normal depth, but scale_loss_by_n_layer = true draws it "
            "uniformly from 1 … recurrent_depth; set only one of them"
        )
    if m.recurrent_backprop_depth is not None and m.recurrent_backprop_depth > m.max_depth:
        raise ValueError(
            f"recurrent_backprop_depth = {m.recurrent_backprop_depth} is above {m.max_depth}, the most "
            "steps in training; lower it, or leave it blank for all steps"
        )
    if m.fixed_edge_blocks and m.prelude == 0 == m.coda:
        raise ValueError(
            "fixed_edge_blocks = true contradicts n_layers_prelude = n_layers_coda = 0; drop one of them"
        )
    target = m.learned_stopping_target_depth
    if target is not None and target > m.loop_depth:
        raise ValueError(
            f"learned_stopping_target_depth = {target} is above the loop's {m.loop_depth} steps; lower it"
        )


def _noise_mode_fits_its_size(m: Model) -> None:
    mode, std = m.recurrent_noise_mode, m.recurrent_noise_std
    if (mode == "none") != (std == 0):
        raise ValueError(
            f"recurrent_noise_mode = {mode} contradicts recurrent_noise_std = {std}; for noise set both, "
            "such as add and 0.1"
        )
    if mode != "concat" and m.recurrent_noise_concat_dim is not None:
        raise ValueError(
            f"recurrent_noise_concat_dim = {m.recurrent_noise_concat_dim} needs recurrent_noise_mode "
            f"= concat, not {mode}"
        )


def _enough_experts(m: Model) -> None:
    if m.moe and m.moe_top_k > m.moe_num_experts + m.moe_dummy:
        limit = f"moe_num_experts + 1 = {m.moe_num_experts + 1} (the dummy counts too)"
        raise ValueError(
            f"moe_top_k = {m.moe_top_k} is above "
            f"{limit if m.moe_dummy else f'moe_num_experts = {m.moe_num_experts}'}; lower it"
        )
    share = m.moe_dummy_share
    if share is not None and share * m.choices >= 1:
        raise ValueError(
            f"moe_dummy_share = {share} cannot be reached: a token chooses the dummy at most once, which is "
            f"1 / {m.choices} of its choices; lower it, or leave it blank"
        )
    if share is not None and m.moe_bias_update_rate == 0:
        raise ValueError(
            f"moe_dummy_share = {share} needs updates of the selection bias, but moe_bias_update_rate = 0 "
            "turns them off; leave moe_dummy_share blank"
        )
    if m.share_moe_experts and not m.loops and m.n_layer == 1:
        raise ValueError("share_moe_experts = true, but there is only one layer; set it to false")


def _one_halting_policy(m: Model) -> None:
    if m.learned_stopping and m.sticky_dropout:
        raise ValueError(
            f"learned_stopping = true contradicts sticky_dropout = {m.sticky_dropout}: both end the "
            "loop; set only one of them"
        )


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
