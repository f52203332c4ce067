"""The health of the network while it trains: what a step does to each layer, and what each layer does.

The figures are named `health/<figure>/<layer>`. docs/guide.md says how to read them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pipeline.distributed.sharded import whole, without_gradients
from pipeline.model.attend import attend, for_each_head
from pipeline.model.attention import CausalSelfAttention
from pipeline.model.feedforward import FeedForward
from pipeline.model.gpt import GPT
from pipeline.model.moe import Experts

TOKENS = 4096  # in a pass, or one sequence if that is longer: what it needs does not grow with the batch
QUERIES = 64  # in a sequence, for which attention weights are computed: nor with the square of its length

Figures = dict[str, torch.Tensor]  # scalars on the model's device, so that no step waits for them

LAYERS = (CausalSelfAttention, FeedForward, Experts)  # measured as a whole, whatever they consist of


def layers(model: GPT) -> dict[str, list[nn.Parameter]]:
    """The parameters by layer: `wte`, `h.0.attn`, `h.0.mlp`, …; those of all norms are the layer `norms`.

    Each parameter is in one layer. A shared block is one layer, as is each matrix outside of these.
    """
    found: dict[str, list[nn.Parameter]] = {}
    for path, module in _measured(model, ""):
        name = "norms" if isinstance(module, nn.LayerNorm | nn.RMSNorm) else _name(path)
        found.setdefault(name, []).extend(module.parameters())
    return found


def of_update(model: GPT, update: Callable[[], None]) -> Figures:
    """Call a step's `update`, and measure it: the norm of each layer's gradient, weights, and their change.

    Gradients are taken as they are before the update; weights before it are what their change is compared
    with. They are copied, which needs their memory once more, when that of the activations is free again.
    """
    figures: Figures = {}
    named = layers(model)
    for name, parameters in named.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        figures[f"health/grad_norm/{name}"] = get_total_norm(gradients or [parameters[0].new_zeros(1)])
    before = {name: [parameter.detach().clone() for parameter in named[name]] for name in named}
    update()
    for name, parameters in named.items():
        weight_norm = get_total_norm(before[name])
        update_norm = get_total_norm(
            [old.sub_(new.detach()) for old, new in zip(before.pop(name), parameters, strict=True)]
        )
        figures[f"health/weight_norm/{name}"] = weight_norm
        figures[f"health/update_norm/{name}"] = update_norm
        figures[f"health/update_ratio/{name}"] = update_norm / weight_norm
    return figures


def of_pass(model: GPT, ids: torch.Tensor) -> Figures:
    """Measure a forward pass over the first sequences of `ids` (B, T), about TOKENS tokens.

    The pass is one of evaluation, so it drops, draws and counts nothing. It is never compiled. A shared block
    has figures for each application: `step.0`, `step.1`, …
    """
    was_training = model.training
    model.eval()
    observer = _Observer(model)
    try:
        with observer, without_gradients(model):
            logits = model(ids[: max(1, TOKENS // ids.shape[1])])
    finally:
        observer.remove()
        model.train(was_training)
    return observer.figures() | {"health/logit_rms/head": rms(logits)}


def numbers(figures: Figures) -> dict[str, float]:
    """The figures as numbers, in one transfer from the device."""
    values = torch.stack([whole(value).float() for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))


def rms(x: torch.Tensor) -> torch.Tensor:
    """The root of the mean square of all values, in float32."""
    return torch.linalg.vector_norm(x, dtype=torch.float32) / math.sqrt(x.numel())


def attention_entropy(
    q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """Entropy (nats) of the attention weights, mean over sequences, heads and up to QUERIES queries.

    Queries and keys are (B, heads, T, head size); keys may be of fewer heads. `bias` is added to the scores,
    (…, T, T). The queries are evenly spaced, the last one among them.
    """
    k = for_each_head(k, q)
    T = q.shape[2]
    number = min(T, QUERIES)
    chosen = torch.arange(1, number + 1, device=q.device) * T // number - 1
    with torch.autocast(q.device.type, enabled=False):
        scores = q[:, :, chosen].float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias[..., chosen, :]
    if causal:
        later = torch.arange(T, device=q.device) > chosen[:, None]
        scores = scores.masked_fill(later, -torch.inf)
    return torch.special.entr(scores.softmax(-1)).sum(-1).mean()


class _Observer(TorchFunctionMode):
    """Sees what a model computes: the output of its blocks, its attention, and which of its units fire.

    The model does not show its attention weights. So queries and keys are taken where they go into `attend`,
    whatever was done to them before.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self._figures: Figures = {}
        self._fired: Figures = {}  # (groups, units): whether a unit fired
        self._block = ""  # the one that is being computed
        self._applications: Counter[nn.Module] = Counter()
        self._active: list[torch.Tensor] = []  # (rows, units), in the order of the rows
        repeats = Counter(model.trunk.blocks())
        self._hooks: list[RemovableHandle] = []
        for path, module in model.named_modules():
            name = _name(path)
            if module in repeats:
                self._hooks += self._watch_block(name, module, repeats[module] > 1)
            if isinstance(module, FeedForward | Experts):
                self._hooks += self._watch_units(name, module)

    def figures(self) -> Figures:
        dead = {f"health/dead_units/{name}": (~fired).float().mean() for name, fired in self._fired.items()}
        return self._figures | dead

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is attend:
            self._see_attention(*args, **kwargs)
        return func(*args, **(kwargs or {}))

    def _see_attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        _: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        **__: object,
    ) -> None:
        name = f"health/attention_entropy/{self._block}"
        self._figures[name] = attention_entropy(q, k, mask, is_causal)

    def _watch_block(self, name: str, block: nn.Module, repeated: bool) -> Iterator[RemovableHandle]:
        def begin(*_: object) -> None:
            self._block = f"{name}.{self._applications[block]}" if repeated else name
            self._applications[block] += 1

        def end(_: nn.Module, __: object, output: torch.Tensor) -> None:
            self._figures[f"health/activation_rms/{self._block}"] = rms(output)

        yield block.register_forward_pre_hook(begin)
        yield block.register_forward_hook(end)

    def _watch_units(self, name: str, module: FeedForward | Experts) -> Iterator[RemovableHandle]:
        def see(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            units = output.shape[-1]
            self._active.append(inputs[0][..., :units].reshape(-1, units) > 0)  # of SwiGLU, that is the gate

        def end(_: nn.Module, inputs: tuple[torch.Tensor, Any], output: torch.Tensor) -> None:
            active = torch.cat(self._active)
            self._active.clear()
            groups = [active]
            if isinstance(module, Experts):
                x, sizes = inputs
                active &= x[: len(active)].any(-1, keepdim=True)  # rows of zeros only fill up a slice
                groups = list(active[: int(sizes.sum())].split(sizes.tolist()))
            fired = torch.stack([group.any(0) for group in groups])
            self._fired[name] = self._fired[name] | fired if name in self._fired else fired

        yield module.activation.register_forward_hook(see)
        yield module.register_forward_hook(end)


def _measured(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose parameters are measured together, by path."""
    if isinstance(module, LAYERS) or any(True for _ in module.parameters(recurse=False)):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _measured(child, f"{path}.{name}" if path else name)


def _name(path: str) -> str:
    """A module's path as the log names it: `h.0.attn` for `trunk.h.0.attn` and `trunk.h.0.block.attn`."""
    return path.partition(".")[2].replace(".block", "")
