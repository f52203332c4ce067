"""lm-evaluation-harness scores texts through the server as this project scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluate.scoring import Group, encode_pair, score
from pipeline.model.load import load_model
from tests import zeroshot
from tests.web.serving import serving

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")
PAIRS = [
    ("The old ship sails", " over the sea"),
    ("A bird sings", " and sinks under the sea."),
    ("The old ship sails", " under"),
]


def instances(kind: str, *arguments: tuple[Any, ...]) -> Any:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_local_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = zeroshot.bpe()
    folder = str(zeroshot.save_model(tmp_path / "model", tokenizer))
    with serving(folder) as address:
        client = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model=folder,
            tokenizer=folder,
            tokenizer_backend="huggingface",
            max_length=zeroshot.BLOCK_SIZE,
            batch_size=2,
        )
        found = client.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
        texts = client.generate_until(
            instances("generate_until", ("The old", {"until": ["ea"], "max_gen_toks": 20})), disable_tqdm=True
        )
    groups = [Group(context, [rest]) for context, rest in (encode_pair(tokenizer, *pair) for pair in PAIRS)]
    model = load_model(folder)
    ours = dict(score(model, groups, tokenizer.vocab_size, torch.device("cpu"), 2))
    for number, (log_probability, greedy) in enumerate(found):
        assert log_probability == pytest.approx(ours[number][0].log_probability, abs=1e-4)
        assert greedy == ours[number][0].greedy
    assert "ea" not in texts[0]
