"""Builds a model from its config: the only place that reads the model's switches and picks the parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.config.model import GPTConfig
from pipeline.model.attention import CausalSelfAttention, ValueMix
from pipeline.model.block import Block, LayerDropout
from pipeline.model.depth_distribution import DepthDistribution
from pipeline.model.feedforward import FeedForward
from pipeline.model.gpt import GPT, ChunkedHead, Embedding, Head, Softcap, TiedProjection
from pipeline.model.halting import EveryStep, LearnedStopping, StickyDropout, StoppingGate
from pipeline.model.linear import Linear
from pipeline.model.moe import Experts, MixtureOfExperts, Router
from pipeline.model.norm import RMSNorm
from pipeline.model.position import ALiBi, Rotary
from pipeline.model.recurrence import AddedNoise, ConcatenatedNoise, Injection, Recurrence, RecurrentStep
from pipeline.model.trunk import Stack, Trunk

LARGE_VOCABULARY = 1 << 14


def padded_vocab_size(vocab_size: int) -> int:
    """Number of embedding rows: large vocabularies are padded to a multiple of 64, which runs faster.

    GPT-2's 50,257 become 50,304, as in nanoGPT. Small vocabularies gain nothing and keep their size.
    """
    return vocab_size if vocab_size < LARGE_VOCABULARY else math.ceil(vocab_size / 64) * 64


def build_gpt(config: GPTConfig) -> GPT:
    """A model with random weights, drawn from torch's global random state."""
    c = config
    kv_channels = (c.n_kv_head or c.n_head) * c.n_embd // c.n_head
    embed = Embedding(
        wte=nn.Embedding(c.vocab_size, c.n_embd),
        wpe=nn.Embedding(c.block_size, c.n_embd) if c.position == "learned" else None,
        dropout=c.dropout,
        vte=nn.Embedding(c.vocab_size, kv_channels) if c.value_embeddings else None,
    )
    trunk = _trunk(c)
    lm_head = (
        TiedProjection(embed.wte) if c.tie_word_embeddings else Linear(c.n_embd, c.vocab_size, bias=False)
    )
    head_type = ChunkedHead if c.vocab_size >= LARGE_VOCABULARY else Head
    head = head_type(_norm(c), lm_head, Softcap(c.logit_softcap) if c.logit_softcap else None)
    model = GPT(embed, trunk, head, c.block_size)
    initialize(model, residual_writes=2 * len(trunk.blocks()))
    return model


def build_on_meta(config: GPTConfig) -> GPT:
    """A model without weights, on the meta device: parameters have a shape and need no memory."""
    with torch.device("meta"), _NoInitialization():
        return build_gpt(config)


def _norm(c: GPTConfig) -> nn.Module:
    return nn.LayerNorm(c.n_embd, bias=c.bias) if c.norm == "layernorm" else RMSNorm(c.n_embd, eps=1e-5)


def _trunk(c: GPTConfig) -> Trunk:
    feed_forward = _mixtures(c) if c.moe else lambda: FeedForward(c.n_embd, c.bias, c.dropout, c.activation)

    def block() -> Block | LayerDropout:
        plain = Block(_norm(c), _attention(c), _norm(c), feed_forward())
        return LayerDropout(plain, c.layer_dropout) if c.layer_dropout else plain

    if not c.loops:
        return Stack([block() for _ in range(c.n_layer)])
    return Recurrence(
        prelude=[block() for _ in range(c.prelude)],
        step=RecurrentStep(
            injection=Injection(c.n_embd, c.bias) if c.recurrent_prelude_injection else None,
            noise=_noise(c),
            block=block(),
            norm=_norm(c) if c.recurrent_extra_layernorm else None,
        ),
        coda=[block() for _ in range(c.coda)],
        depth=c.loop_depth,
        halting=_halting(c),
        distribution=_distribution(c) if c.recurrent_shared_weights else None,
        backprop_depth=c.recurrent_backprop_depth,
        scale_loss=c.scale_loss_by_n_layer,
    )


def _attention(c: GPTConfig) -> CausalSelfAttention:
    head_size = c.n_embd // c.n_head
    return CausalSelfAttention(
        c.n_embd,
        c.n_head,
        c.bias,
        c.dropout,
        n_kv_head=c.n_kv_head,
        rotary=Rotary(head_size, c.block_size) if c.position == "rotary" else None,
        alibi=ALiBi(c.n_head) if c.position == "alibi" else None,
        q_norm=RMSNorm(head_size, eps=1e-5) if c.qk_norm else None,
        k_norm=RMSNorm(head_size, eps=1e-5) if c.qk_norm else None,
        value_mix=ValueMix() if c.value_embeddings else None,
    )


def _mixtures(c: GPTConfig) -> Callable[[], MixtureOfExperts]:
    """A function that makes one mixture per call; if they share a bank of experts, the first one owns it."""
    made: list[MixtureOfExperts] = []
    banks: list[Experts] = []

    def mixture() -> MixtureOfExperts:
        owner = not (c.share_moe_experts and banks)
        if owner:
            banks.append(Experts(c.moe_num_experts, c.n_embd, c.bias, c.activation))
        router = Router(
            c.n_embd, c.moe_num_experts, c.choices, c.moe_dummy, c.moe_dummy_share, c.moe_bias_update_rate
        )
        made.append(
            MixtureOfExperts(
                f"moe{len(made)}",
                router,
                banks[-1],
                c.dropout,
                c.moe_aux_loss_weight,
                c.moe_z_loss_weight,
                owns_experts=owner,
            )
        )
        return made[-1]

    return mixture


def _noise(c: GPTConfig) -> nn.Module | None:
    if c.recurrent_noise_mode == "add":
        return AddedNoise(c.recurrent_noise_std)
    if c.recurrent_noise_mode == "concat":
        channels = c.recurrent_noise_concat_dim or c.n_embd
        return ConcatenatedNoise(c.n_embd, channels, c.recurrent_noise_std, c.bias)
    return None


def _halting(c: GPTConfig) -> EveryStep | StickyDropout | LearnedStopping:
    if c.sticky_dropout:
        return StickyDropout(c.sticky_dropout)
    if not c.learned_stopping:
        return EveryStep()
    return LearnedStopping(
        StoppingGate(
            c.n_embd,
            c.bias,
            c.learned_stopping_temperature,
            c.learned_stopping_min_prob,
            c.learned_stopping_warmup_steps,
        ),
        c.learned_stopping_controller_weight,
        c.learned_stopping_target_depth,
        c.learned_stopping_entropy_weight,
        c.learned_stopping_threshold if c.learned_stopping_use_threshold else None,
    )


def _distribution(c: GPTConfig) -> DepthDistribution:
    if c.scale_loss_by_n_layer:
        return DepthDistribution.uniform(c.recurrent_depth)
    return DepthDistribution.log_normal(c.recurrent_depth, c.recurrent_depth_spread, c.max_depth)


def initialize(model: nn.Module, residual_writes: int) -> None:
    """GPT-2's initialization (Radford et al. 2019, section 2.3).

    Matrices are normal with standard deviation 0.02, biases zero. Projections that write to the residual
    stream are scaled by 1 / sqrt(number of such writes), so that the stream does not grow with depth. Norms
    and scalar weights keep their module's own initialization.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() >= 2:
            scale = 1 / math.sqrt(residual_writes) if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)


class _NoInitialization(TorchFunctionMode):
    """Turns the functions of torch.nn.init into no-ops, because parameters without memory have no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
