"""The `model` section of params.yaml: the plain GPT-2, and a switch for each member of the family.

Every switch is off by default. What contradicts itself, or asks for something that is off, is an error: a
switch that was silently ignored has ruined many an experiment. Numbers that only describe a part that is off
(how many experts, how deep) may stay, so that a part is one switch to turn off and on again.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.validation import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

# What asks for something that another switch has to be on for.
NEEDS_LOOP = (
    "fixed_edge_blocks",
    "n_layers_prelude",
    "n_layers_coda",
    "recurrent_prelude_injection",
    "recurrent_noise_mode",
    "recurrent_noise_std",
    "recurrent_noise_concat_dim",
    "recurrent_extra_layernorm",
    "recurrent_backprop_depth",
    "sticky_dropout",
    "learned_stopping",
)
NEEDS_RECURRENCE = ("recurrent_max_depth", "scale_loss_by_n_layer")
NEEDS_MOE = ("moe_hard_routing", "share_moe_experts", "moe_aux_loss_weight", "moe_z_loss_weight")
NEEDS_STOPPING = (
    "learned_stopping_warmup_steps",
    "learned_stopping_controller_weight",
    "learned_stopping_target_depth",
    "learned_stopping_entropy_weight",
    "learned_stopping_use_threshold",
)


class Model(Section):
    n_layer: Count = Field(
        description="transformer blocks; times one shared block is applied, if it is not recurrent"
    )
    n_head: Count = Field(description="attention heads; must divide n_embd")
    n_embd: Count = Field(description="width of the residual stream")
    block_size: Count = Field(description="context length in tokens")
    bias: bool = Field(description="biases in the blocks' Linear and LayerNorm layers, as in GPT-2")
    dropout: Fraction = Field(description="0 for pretraining; 0.1 or more for finetuning or small data")

    # parts of a block
    position: Literal["learned", "rotary", "alibi"] = Field(
        "learned", description="learned embeddings, rotary (Su et al. 2021) or ALiBi (Press et al. 2022)"
    )
    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="rmsnorm: Zhang and Sennrich 2019")
    activation: Literal["gelu", "gelu_new", "relu2", "swiglu"] = Field(
        "gelu",
        description="gelu_new: OpenAI's approximation; relu2: So et al. 2021; swiglu: Shazeer 2020, narrower",
    )
    qk_norm: bool = Field(False, description="RMSNorm on each head's queries and keys (Henry et al. 2020)")
    n_kv_head: Count | None = Field(
        None, description="heads of keys and values (Ainslie et al. 2023); null is n_head"
    )
    value_embeddings: bool = Field(
        False, description="a second token embedding that each attention mixes into its values"
    )
    tie_word_embeddings: bool = Field(True, description="one matrix reads and writes tokens; false unties")
    logit_softcap: Annotated[float, Field(gt=0)] | None = Field(
        None, description="keep logits within ± this, smoothly (Gemma 2); null leaves them"
    )

    # one block for all layers, and how often it is applied
    share_parameters_across_layers: bool = Field(
        False, description="one block at every layer (ALBERT, Lan et al. 2020)"
    )
    recurrent_shared_weights: bool = Field(
        False, description="one block applied a varying number of times; implies sharing"
    )
    recurrent_depth: Count = Field(
        4, description="mean number of applications in training, the number after it"
    )
    recurrent_depth_spread: Annotated[float, Field(ge=0, le=3)] = Field(
        0.5, description="deviation of the logarithm of the number of applications in training; 0 fixes it"
    )
    recurrent_max_depth: Count | None = Field(
        None, description="most applications in training; null is twice recurrent_depth"
    )
    scale_loss_by_n_layer: bool = Field(
        False, description="draw 1 … recurrent_depth uniformly, and scale the loss by n / recurrent_depth"
    )
    recurrent_backprop_depth: Count | None = Field(
        None, description="gradients through the last so many applications only; null is all"
    )
    fixed_edge_blocks: bool = Field(False, description="an unshared block before the loop and one after it")
    n_layers_prelude: Annotated[int, Field(ge=0)] | None = Field(
        None, description="unshared blocks before the loop; null is 1 with fixed_edge_blocks, else 0"
    )
    n_layers_coda: Annotated[int, Field(ge=0)] | None = Field(
        None, description="unshared blocks after the loop; null is 1 with fixed_edge_blocks, else 0"
    )
    recurrent_prelude_injection: bool = Field(
        False, description="every application sees the prelude's output again (Geiping et al. 2025)"
    )
    recurrent_noise_mode: Literal["none", "add", "concat"] = Field(
        "none", description="noise before every application, in training only"
    )
    recurrent_noise_std: NonNegative = Field(0.0, description="deviation of that noise")
    recurrent_noise_concat_dim: Count | None = Field(
        None, description="noise channels that concat adds; null is n_embd"
    )
    recurrent_extra_layernorm: bool = Field(False, description="a norm after every application")

    # mixture of experts
    moe: bool = Field(False, description="experts in place of each feed-forward network")
    moe_num_experts: Count = Field(4, description="experts in a layer, besides the dummy that does nothing")
    moe_top_k: Count = Field(2, description="experts that each token uses, the dummy among the candidates")
    moe_hard_routing: bool = Field(False, description="one expert a token, whatever moe_top_k says")
    share_moe_experts: bool = Field(False, description="one bank of experts for all layers, a router each")
    moe_dummy_share: Fraction | None = Field(
        None, description="the dummy's share of the choices; null is 0.45, or 0.9 / moe_top_k if that is less"
    )
    moe_bias_update_rate: NonNegative = Field(
        0.001, description="step of the selection bias that balances the load (Wang et al. 2024); 0 is off"
    )
    moe_aux_loss_weight: NonNegative = Field(
        0.0, description="of the load-balancing loss (Fedus et al. 2022)"
    )
    moe_z_loss_weight: NonNegative = Field(0.0, description="of the router's z-loss (Zoph et al. 2022)")

    # leaving layers out
    layer_dropout: Fraction = Field(0.0, description="probability that a sequence skips a block, in training")
    sticky_dropout: Fraction = Field(
        0.0,
        description="probability, at each application, that a sequence skips all further ones, in training",
    )
    learned_stopping: bool = Field(False, description="a gate decides, token by token, when to stop the loop")
    learned_stopping_warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="optimizer steps before the gate stops anything"
    )
    learned_stopping_controller_weight: NonNegative = Field(
        0.0, description="of (mean depth − target depth)², a part of the loss"
    )
    learned_stopping_target_depth: Annotated[float, Field(ge=1)] | None = Field(
        None, description="mean depth to aim at; null is that of stopping anywhere alike, (n + 1) / 2"
    )
    learned_stopping_entropy_weight: NonNegative = Field(
        0.0, description="of the entropy of the stopping step, which the loss rewards"
    )
    learned_stopping_temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="the gate's logits are divided by it"
    )
    learned_stopping_min_prob: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        1e-4, description="the gate's probabilities stay this far from 0 and 1"
    )
    learned_stopping_use_threshold: bool = Field(
        False,
        description="after training, a token stops for good once its stopping mass exceeds the threshold",
    )
    learned_stopping_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="that threshold: 0.9 stops a token when a tenth of its mass is left to go on"
    )

    @property
    def loops(self) -> bool:
        """One block is applied again and again."""
        return self.share_parameters_across_layers or self.recurrent_shared_weights

    @property
    def loop_depth(self) -> int:
        """How often the looped block is applied after training."""
        return self.recurrent_depth if self.recurrent_shared_weights else self.n_layer

    @property
    def max_depth(self) -> int:
        """How often the looped block is applied at most while training."""
        varies = self.recurrent_shared_weights and self.recurrent_depth_spread > 0
        if not varies or self.scale_loss_by_n_layer:
            return self.loop_depth
        return self.recurrent_max_depth or 2 * self.recurrent_depth

    @property
    def choices(self) -> int:
        """How many candidates a token chooses in a mixture of experts."""
        return 1 if self.moe_hard_routing else self.moe_top_k

    @property
    def dummy_share(self) -> float | None:
        """The part of the choices at which the bias holds the dummy: nine of ten tokens, by default."""
        if self.moe_bias_update_rate == 0:
            return None
        return min(0.45, 0.9 / self.choices) if self.moe_dummy_share is None else self.moe_dummy_share

    @property
    def prelude(self) -> int:
        return int(self.fixed_edge_blocks) if self.n_layers_prelude is None else self.n_layers_prelude

    @property
    def coda(self) -> int:
        return int(self.fixed_edge_blocks) if self.n_layers_coda is None else self.n_layers_coda

    def changed(self, *names: str) -> list[str]:
        """`name = value` of those of the named switches that are not as they are in GPT-2."""
        values = {name: getattr(self, name) for name in names}
        return [
            f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
            for name, value in values.items()
            if value != Model.model_fields[name].default
        ]

    def beyond_gpt2(self) -> list[str]:
        """`name = value` of each switch that GPT-2's architecture has no place for.

        Sharing and recurrence are not among them: a loop of fixed depth is that many layers. Nor is what acts
        in training only.
        """
        names = set(BEYOND_GPT2)
        if self.n_kv_head == self.n_head:
            names.remove("n_kv_head")
        if self.activation == "gelu_new":
            names.remove("activation")
        if self.recurrent_noise_mode == "concat":
            names.add("recurrent_noise_mode")
        return self.changed(*(name for name in Model.model_fields if name in names))

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Model:
        if self.n_embd % self.n_head:
            nearest = max(self.n_head, round(self.n_embd / self.n_head) * self.n_head)
            raise ValueError(
                f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}; try n_embd = {nearest}"
            )
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_kv_head = {self.n_kv_head} does not divide n_head = {self.n_head}; try n_kv_head = 1"
            )
        head_size = self.n_embd // self.n_head
        if self.position == "rotary" and head_size % 2:
            raise ValueError(
                f"position = rotary turns pairs of channels, but n_embd / n_head = {head_size} is odd; "
                "choose another n_head"
            )
        return self

    @model_validator(mode="after")
    def _no_switch_is_ignored(self) -> Model:
        sharing = "share_parameters_across_layers or recurrent_shared_weights"
        for names, needed, is_on in (
            (NEEDS_LOOP, f"needs one block at every layer: set {sharing} to true", self.loops),
            (NEEDS_RECURRENCE, "needs recurrent_shared_weights = true", self.recurrent_shared_weights),
            (NEEDS_MOE, "needs moe = true", self.moe),
            (NEEDS_STOPPING, "needs learned_stopping = true", self.learned_stopping),
            (
                ("learned_stopping_target_depth",),
                "needs learned_stopping_controller_weight above 0",
                self.learned_stopping_controller_weight > 0,
            ),
        ):
            changed = self.changed(*names)
            if changed and not is_on:
                raise ValueError(f"{changed[0]} {needed}, or leave it at its default")
        return self

    @model_validator(mode="after")
    def _depths_agree(self) -> Model:
        if self.recurrent_max_depth is not None and self.recurrent_max_depth < self.recurrent_depth:
            raise ValueError(
                f"recurrent_max_depth = {self.recurrent_max_depth} is below recurrent_depth = "
                f"{self.recurrent_depth}, the mean; raise it"
            )
        if self.recurrent_max_depth is not None and self.recurrent_depth_spread == 0:
            raise ValueError(
                f"recurrent_max_depth = {self.recurrent_max_depth} caps a depth that recurrent_depth_spread "
                "= 0 fixes; leave one of them at its default"
            )
        if self.max_depth == 1 and (self.learned_stopping or self.sticky_dropout) and self.loops:
            which = "learned_stopping" if self.learned_stopping else "sticky_dropout"
            raise ValueError(f"{which} has nothing to end in a loop of one step; make it deeper")
        shape_of_draw = self.changed("recurrent_max_depth", "recurrent_depth_spread")
        if shape_of_draw and self.scale_loss_by_n_layer:
            raise ValueError(
                f"{shape_of_draw[0]} is of the log-normal draw, but scale_loss_by_n_layer = true draws "
                "1 … recurrent_depth uniformly; set one of them only"
            )
        if self.recurrent_backprop_depth is not None and self.recurrent_backprop_depth > self.max_depth:
            raise ValueError(
                f"recurrent_backprop_depth = {self.recurrent_backprop_depth} is above the {self.max_depth} "
                "steps that training takes at most; lower it, or leave it blank for all"
            )
        if self.fixed_edge_blocks and self.prelude == 0 == self.coda:
            raise ValueError(
                "fixed_edge_blocks = true contradicts n_layers_prelude = n_layers_coda = 0; drop one of them"
            )
        target = self.learned_stopping_target_depth
        if target is not None and target > self.loop_depth:
            raise ValueError(
                f"learned_stopping_target_depth = {target} is above the {self.loop_depth} steps there are; "
                "lower it"
            )
        return self

    @model_validator(mode="after")
    def _noise_is_heard(self) -> Model:
        mode, std = self.recurrent_noise_mode, self.recurrent_noise_std
        if (mode == "none") != (std == 0):
            raise ValueError(
                f"recurrent_noise_mode = {mode} contradicts recurrent_noise_std = {std}; for noise set both, "
                "such as add and 0.1"
            )
        if mode != "concat" and self.recurrent_noise_concat_dim is not None:
            raise ValueError(
                f"recurrent_noise_concat_dim = {self.recurrent_noise_concat_dim} needs recurrent_noise_mode "
                f"= concat; it is {mode}"
            )
        return self

    @model_validator(mode="after")
    def _experts_suffice(self) -> Model:
        candidates = self.moe_num_experts + 1
        if self.moe and self.moe_top_k > candidates:
            raise ValueError(
                f"moe_top_k = {self.moe_top_k} is above moe_num_experts + 1 = {candidates} (the dummy counts "
                "too); lower it"
            )
        share = self.moe_dummy_share
        if self.moe and share is not None and share * self.choices >= 1:
            raise ValueError(
                f"moe_dummy_share = {share} is out of reach: a token chooses the dummy once, which is 1 / "
                f"{self.choices} of its choices; set less, or leave it blank"
            )
        if self.moe and share is not None and self.moe_bias_update_rate == 0:
            raise ValueError(
                f"moe_dummy_share = {share} is held by the bias, but moe_bias_update_rate = 0 keeps that "
                "still; leave moe_dummy_share blank"
            )
        mixtures = 1 + self.prelude + self.coda if self.loops else self.n_layer
        if self.share_moe_experts and mixtures == 1:
            raise ValueError(
                "share_moe_experts = true, but there is only one block to have experts; set it to false"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_stop(self) -> Model:
        if self.learned_stopping and self.sticky_dropout:
            raise ValueError(
                f"learned_stopping = true contradicts sticky_dropout = {self.sticky_dropout}: both end the "
                "loop; set one of them only"
            )
        return self


class GPTConfig(Model):
    """The `model` section plus the vocabulary it is trained for; saved as config.json beside the weights."""

    vocab_size: int = Field(ge=1, description="rows of the embedding, padding included")


# What GPT-2's architecture, as other programs have it, has no place for.
BEYOND_GPT2 = (
    "position",
    "norm",
    "activation",
    "qk_norm",
    "n_kv_head",
    "value_embeddings",
    "logit_softcap",
    "recurrent_prelude_injection",
    "recurrent_extra_layernorm",
    "moe",
    "learned_stopping",
)

# What may change when a saved model's weights are trained on: how they are trained, how often the loop they
# are in is applied, and when it stops; never what a parameter is or does. (Not layer_dropout, which gives
# parameters other names, and not the gate's warmup, which counts the steps that are already taken.)
CHANGES_NO_WEIGHT = (
    "dropout",
    "recurrent_depth",
    "recurrent_depth_spread",
    "recurrent_max_depth",
    "scale_loss_by_n_layer",
    "recurrent_backprop_depth",
    "recurrent_noise_mode",  # unless it is concat
    "recurrent_noise_std",
    "moe_dummy_share",
    "moe_bias_update_rate",
    "moe_aux_loss_weight",
    "moe_z_loss_weight",
    "sticky_dropout",
    "learned_stopping_controller_weight",
    "learned_stopping_target_depth",
    "learned_stopping_entropy_weight",
    "learned_stopping_use_threshold",
    "learned_stopping_threshold",
)
