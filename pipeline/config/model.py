"""The `model` section of params.yaml: the plain GPT-2, and a switch for each variant of it.

Without a value in params.yaml every switch is off. Its field says what it does, what it needs, whether GPT-2
has it and whether it changes the weights. The comments of params.yaml, its JSON schema and docs/parameters.md
are generated from the fields. `model_rules` checks that switches do not contradict each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.model_rules import check
from pipeline.config.validation import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
# No model comes near these limits. They keep a slip of the finger, such as n_layer = 10**9, from using up the
# memory for what no weights file tells, and tensors countable in 64 bits.
Count = Annotated[int, Field(ge=1, le=1 << 24)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Repeats = Annotated[int, Field(ge=1, le=1 << 16)]


@dataclass(frozen=True)
class Facts:
    """Facts about a switch besides its type, default and description."""

    needs: str = ""  # a field or property of Model that must be true for this switch to have an effect
    may_stay: bool = False  # it may keep its value when `needs` is off, so that one switch toggles the part
    in_gpt2: bool = True  # the GPT-2 of other programs can do it
    changes_weights: bool = True  # another value adds or removes weights, or changes what they mean

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add `needs` to the description in the JSON schema, which editors show."""
        if self.needs in Model.model_fields:
            schema["description"] += f" (needs {self.needs})"


def switch(
    default: Any,
    description: str,
    *,
    needs: str = "",
    may_stay: bool = False,
    in_gpt2: bool = True,
    changes_weights: bool = True,
) -> Any:
    """A field of the `model` section with a default and its Facts."""
    facts = Facts(needs, may_stay, in_gpt2, changes_weights)
    return Field(default, description=description, json_schema_extra=facts)


class Model(Section):
    """GPT-2, and a switch for each variant of it"""

    n_layer: Repeats = Field(
        description="transformer blocks; with one shared block, how often it is applied (unless recurrent)"
    )
    n_head: Repeats = Field(description="attention heads in each block; must divide n_embd")
    n_embd: Width = Field(description="width of the residual stream")
    block_size: Count = Field(description="context length in tokens")
    bias: bool = Field(description="biases in the blocks' Linear and LayerNorm layers, as in GPT-2")
    dropout: Fraction = Field(
        description="0.0 for pretraining; 0.1 or more for finetuning or little data",
        json_schema_extra=Facts(changes_weights=False),
    )

    position: Literal["learned", "rotary", "alibi"] = switch(
        "learned", "learned, rotary (Su et al. 2021) or alibi (Press et al. 2022)", in_gpt2=False
    )
    norm: Literal["layernorm", "rmsnorm"] = switch(
        "layernorm", "layernorm or rmsnorm (Zhang and Sennrich 2019)", in_gpt2=False
    )
    activation: Literal["gelu", "gelu_new", "relu2", "swiglu"] = switch(
        "gelu",
        "gelu, gelu_new (GPT-2's approximation), relu2 (So et al. 2021) or swiglu (Shazeer 2020)",
        in_gpt2=False,
    )
    qk_norm: bool = switch(
        False, "RMSNorm on each head's queries and keys (Henry et al. 2020)", in_gpt2=False
    )
    n_kv_head: Repeats | None = switch(
        None,
        "heads of keys and values, shared by groups of queries (Ainslie et al. 2023); blank: n_head",
        in_gpt2=False,
    )
    value_embeddings: bool = switch(
        False, "a second token embedding that each attention layer mixes into its values", in_gpt2=False
    )
    tie_word_embeddings: bool = switch(True, "one matrix for the input and the output embedding")
    logit_softcap: Annotated[float, Field(gt=0)] | None = switch(
        None, "keep logits within ± this, smoothly (Gemma 2), such as 30.0; blank: no limit", in_gpt2=False
    )

    share_parameters_across_layers: bool = switch(
        False, "the same block at every layer (ALBERT, Lan et al. 2020)"
    )
    recurrent_shared_weights: bool = switch(
        False, "the same block, a varying number of times; implies sharing"
    )
    recurrent_depth: Repeats = switch(
        4,
        "applications of the block: the mean in training, the number after it",
        needs="recurrent_shared_weights",
        may_stay=True,
        changes_weights=False,
    )
    recurrent_depth_spread: Annotated[float, Field(ge=0, le=3)] = switch(
        0.5,
        "standard deviation of the logarithm of that number in training; 0.0 fixes it",
        needs="recurrent_shared_weights",
        may_stay=True,
        changes_weights=False,
    )
    recurrent_max_depth: Repeats | None = switch(
        None,
        "most applications in training; blank: twice recurrent_depth",
        needs="recurrent_shared_weights",
        changes_weights=False,
    )
    scale_loss_by_n_layer: bool = switch(
        False,
        "draw 1 to recurrent_depth uniformly instead; loss x applications / recurrent_depth",
        needs="recurrent_shared_weights",
        changes_weights=False,
    )
    recurrent_backprop_depth: Repeats | None = switch(
        None,
        "backpropagate through the last so many applications; blank: all",
        needs="loops",
        changes_weights=False,
    )
    fixed_edge_blocks: bool = switch(
        False, "one unshared block before the loop and one after it", needs="loops"
    )
    n_layers_prelude: Annotated[int, Field(ge=0, le=1 << 16)] | None = switch(
        None, "unshared blocks before the loop; blank: 1 with fixed_edge_blocks, else 0", needs="loops"
    )
    n_layers_coda: Annotated[int, Field(ge=0, le=1 << 16)] | None = switch(
        None, "unshared blocks after the loop; blank: 1 with fixed_edge_blocks, else 0", needs="loops"
    )
    recurrent_prelude_injection: bool = switch(
        False,
        "each application also sees the prelude's output (Geiping et al. 2025)",
        needs="loops",
        in_gpt2=False,
    )
    recurrent_noise_mode: Literal["none", "add", "concat"] = switch(
        "none",
        "noise before each application, in training: none, add or concat",
        needs="loops",
        changes_weights=False,  # unless it is concat
    )
    recurrent_noise_std: NonNegative = switch(
        0.0, "standard deviation of that noise", needs="loops", changes_weights=False
    )
    recurrent_noise_concat_dim: Width | None = switch(
        None, "noise channels with concat; blank: n_embd", needs="loops"
    )
    recurrent_extra_layernorm: bool = switch(
        False, "a norm after each application", needs="loops", in_gpt2=False
    )

    moe: bool = switch(False, "each token goes to a few of several experts", in_gpt2=False)
    moe_num_experts: Repeats = switch(4, "experts in each layer", needs="moe", may_stay=True)
    moe_top_k: Repeats = switch(
        2, "experts per token; with moe_dummy, the dummy may be one of them", needs="moe", may_stay=True
    )
    moe_hard_routing: bool = switch(
        False, "one expert per token, whatever moe_top_k says (Fedus et al. 2022)", needs="moe"
    )
    share_moe_experts: bool = switch(
        False, "the same experts in all layers, each layer with a router of its own", needs="moe"
    )
    moe_dummy: bool = switch(
        False, "a dummy among the experts, which returns its input and costs nothing", needs="moe"
    )
    moe_dummy_share: Fraction | None = switch(
        None,
        "the dummy's share of all choices; blank: the router decides",
        needs="moe_dummy",
        changes_weights=False,
    )
    moe_bias_update_rate: NonNegative = switch(
        0.001,
        "step of the selection bias that balances the load (Wang et al. 2024); 0.0: off",
        needs="moe",
        may_stay=True,
        changes_weights=False,
    )
    moe_aux_loss_weight: NonNegative = switch(
        0.0, "weight of the load-balancing loss (Fedus et al. 2022)", needs="moe", changes_weights=False
    )
    moe_z_loss_weight: NonNegative = switch(
        0.0, "weight of the router's z-loss (Zoph et al. 2022)", needs="moe", changes_weights=False
    )

    layer_dropout: Fraction = switch(
        0.0, "probability that a sequence skips a block, in training"
    )  # changes weights: it wraps the block, and so renames its weights
    sticky_dropout: Fraction = switch(
        0.0,
        "probability, after each application, that a sequence skips all further ones, in training",
        needs="loops",
        changes_weights=False,
    )
    learned_stopping: bool = switch(
        False, "a gate learns for each token when to stop the loop", needs="loops", in_gpt2=False
    )
    learned_stopping_warmup_steps: Annotated[int, Field(ge=0)] = switch(
        0, "optimizer steps before the gate stops anything", needs="learned_stopping"
    )  # changes weights: they include the gate's count of steps
    learned_stopping_controller_weight: NonNegative = switch(
        0.0,
        "weight of (mean depth - target depth)^2 in the loss",
        needs="learned_stopping",
        changes_weights=False,
    )
    learned_stopping_target_depth: Annotated[float, Field(ge=1)] | None = switch(
        None,
        "mean depth to aim at; blank: (n + 1) / 2 for n applications",
        needs="learned_stopping_controller_weight",
        changes_weights=False,
    )
    learned_stopping_entropy_weight: NonNegative = switch(
        0.0,
        "weight of the entropy of the stopping step, which the loss rewards",
        needs="learned_stopping",
        changes_weights=False,
    )
    learned_stopping_temperature: Annotated[float, Field(gt=0)] = switch(
        1.0,
        "divides the gate's logit: above 1.0 softer, below 1.0 harder",
        needs="learned_stopping",
        may_stay=True,
    )
    learned_stopping_min_prob: Annotated[float, Field(ge=0, lt=0.5)] = switch(
        1e-4,
        "the gate's probability stays this far from 0 and 1",
        needs="learned_stopping",
        may_stay=True,
    )
    learned_stopping_use_threshold: bool = switch(
        False,
        "after training, a token stops for good above the threshold, which saves computing",
        needs="learned_stopping",
        changes_weights=False,
    )
    learned_stopping_threshold: Annotated[float, Field(gt=0, lt=1)] = switch(
        0.9,
        "stopped probability mass at which a token stops; lower stops earlier",
        needs="learned_stopping",
        may_stay=True,
        changes_weights=False,
    )

    @property
    def loops(self) -> bool:
        """Whether one block is applied repeatedly."""
        return self.share_parameters_across_layers or self.recurrent_shared_weights

    @property
    def loop_depth(self) -> int:
        """How often the looped block is applied after training."""
        return self.recurrent_depth if self.recurrent_shared_weights else self.n_layer

    @property
    def max_depth(self) -> int:
        """How often the looped block is applied at most in training."""
        varies = self.recurrent_shared_weights and self.recurrent_depth_spread > 0
        if not varies or self.scale_loss_by_n_layer:
            return self.loop_depth
        return self.recurrent_max_depth or 2 * self.recurrent_depth

    @property
    def choices(self) -> int:
        """How many candidates a token chooses in a mixture of experts."""
        return 1 if self.moe_hard_routing else self.moe_top_k

    @property
    def prelude(self) -> int:
        return int(self.fixed_edge_blocks) if self.n_layers_prelude is None else self.n_layers_prelude

    @property
    def coda(self) -> int:
        return int(self.fixed_edge_blocks) if self.n_layers_coda is None else self.n_layers_coda

    def with_derived(self) -> dict[str, Any]:
        """All fields, and what the model derives from them, such as `max_depth`: what its steps depend on."""
        derived = [name for name, value in vars(Model).items() if isinstance(value, property)]
        return self.model_dump() | {name: getattr(self, name) for name in derived}

    @classmethod
    def facts(cls, name: str) -> Facts:
        """The facts about the field `name`."""
        facts = cls.model_fields[name].json_schema_extra
        return facts if isinstance(facts, Facts) else Facts()

    def changed(self, *names: str) -> list[str]:
        """`name = value` for each of the named switches that is not at its default."""
        return [
            f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
            for name in names
            if (value := getattr(self, name)) != Model.model_fields[name].default
        ]

    def beyond_gpt2(self) -> list[str]:
        """`name = value` for each switch that GPT-2's architecture cannot express.

        Sharing and recurrence are left out, because a loop of fixed depth equals that many layers. So are
        switches that act only in training.
        """
        beyond = {name for name in Model.model_fields if not self.facts(name).in_gpt2}
        if self.n_kv_head == self.n_head:
            beyond.remove("n_kv_head")
        if self.activation == "gelu_new":
            beyond.remove("activation")
        if self.recurrent_noise_mode == "concat":
            beyond.add("recurrent_noise_mode")
        return self.changed(*(name for name in Model.model_fields if name in beyond))

    @model_validator(mode="after")
    def _makes_sense(self) -> Model:
        check(self)
        return self


class GPTConfig(Model):
    """The `model` section and the size of the vocabulary; saved as config.json beside the weights."""

    vocab_size: Count = Field(description="rows of the embedding, padding included")


# {first field of a group of switches: heading of the group in params.yaml and docs/parameters.md}
HEADINGS = {
    "position": "parts of a block that are not GPT-2's",
    "share_parameters_across_layers": "one block for all layers",
    "moe": "a mixture of experts in place of the feed-forward network",
    "layer_dropout": "leaving layers out",
}
