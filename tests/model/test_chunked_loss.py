"""The loss of a large vocabulary, computed in chunks, is cross-entropy; and it needs little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import chunked_loss
from pipeline.model.gpt import GPT, ChunkedHead, Head
from pipeline.runtime.compiled import compiled
from tests import tiny

VOCABULARY = 1 << 14
IDS = torch.randint(VOCABULARY, (5, 8), generator=torch.Generator().manual_seed(0))
TARGETS = IDS.roll(-1, 1)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "TOKENS", 12)  # 40 tokens are three chunks and a rest


def large(**switches: Any) -> GPT:
    return tiny.model(n_layer=1, vocab_size=VOCABULARY, **switches).train()


def plain(model: GPT) -> GPT:
    """The model with a head that has all logits at once."""
    model.head.__class__ = Head
    return model


def loss_and_gradients(model: GPT, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        loss = model(IDS, targets=TARGETS).total
    (3 * loss).backward()  # a scale, such as that of float16
    return [
        loss.detach(),
        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize(
    "switches",
    [{}, {"tie_word_embeddings": False}, {"logit_softcap": 2.0}],
    ids=["tied", "untied", "softcap"],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    switches: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    found = loss_and_gradients(large(**switches), dtype)
    expected = loss_and_gradients(plain(large(**switches)), dtype)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
    with torch.no_grad():
        torch.testing.assert_close(
            large(**switches)(IDS, targets=TARGETS).total, expected[0], rtol=1e-2, atol=0
        )


class _Largest(TorchDispatchMode):
    """The number of values in the largest tensor that is computed."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("training", [True, False])
def test_the_logits_of_all_tokens_are_never_in_memory(training: bool) -> None:
    largest = {}
    for name, model in (("chunks", large()), ("plain", plain(large()))):
        with _Largest() as seen, torch.set_grad_enabled(training):
            loss = model(IDS, targets=TARGETS).total
            if training:
                loss.backward()
        largest[name] = seen.numel
    assert largest["plain"] == IDS.numel() * VOCABULARY
    assert largest["chunks"] == max(12, tiny.config().n_embd) * VOCABULARY  # a chunk's, or the weight's own


def test_only_a_large_vocabulary_is_cut() -> None:
    assert isinstance(large().head, ChunkedHead)
    assert type(tiny.model(vocab_size=VOCABULARY - 1).head) is Head


def test_it_can_be_compiled() -> None:
    torch.compiler.reset()
    found = loss_and_gradients(compiled(large(), "aot_eager"))
    torch.testing.assert_close(found, loss_and_gradients(large()), atol=1e-6, rtol=1e-4)
