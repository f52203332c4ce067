"""A trained model that has everything a report can show: a loop, learned stopping, experts, hostile text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.config.params import load_params
from pipeline.config.presets import overlay
from pipeline.corpus.sources import TailSplit
from pipeline.storage.files import write_text
from pipeline.tokens.write_shards import tokenize
from stages import depth_curve, eval_baselines, report, sample
from stages.train import main as train
from tests import tiny

HOSTILE = "</script><img src=x onerror=document.title='hurt'>"
SWITCHES = [
    "model.recurrent_shared_weights=true",
    "model.recurrent_depth=3",
    "model.moe=true",
    "model.moe_num_experts=3",
    "model.learned_stopping=true",
    "model.learned_stopping_use_threshold=true",
    "model.learned_stopping_threshold=0.6",
    "log.health_interval=10",
    "baselines.models=[uniform,bigram,xz]",
]


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose results have a report; not to be written to."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("DVC_ROOT", raising=False)
        shown = f"{HOSTILE}\n" + tiny.text(100)
        raw = Path("data/tiny/raw")
        write_text(raw / "tiny.txt", tiny.text() + shown)
        spec = f"description: {HOSTILE!r}\nsource: {{kind: pydocs}}\nsplit: {{by: tail, fraction: 0.1}}\n"
        write_text(Path("data/tiny/dataset.yaml"), spec)
        share = len(shown) / (len(shown) + len(tiny.text()))
        tokenize(raw, TailSplit(by="tail", fraction=share), "char", 257, 10**6, raw.with_name("char"))
        values = tiny.params(*SWITCHES).model_dump()
        write_text(Path("params.yaml"), overlay(tiny.params_yaml("nanogpt"), values))
        train()
        for name in load_params().baselines.models:
            eval_baselines.main(name)
        depth_curve.main()
        sample.main(out=Path("results/samples.txt"))
        report.main()
    return folder


@pytest.fixture
def project(reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(reported, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path
