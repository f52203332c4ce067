"""While a training runs, its newest checkpoint is served; and so is a model that was made again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch

from pipeline.storage.checksums import write_manifest
from pipeline.web.models import ServedModel
from tests import zeroshot
from tests.train.runs import flip_a_bit

CPU = torch.device("cpu")


def weights(served: ServedModel) -> torch.Tensor:
    return served.current.gpt.embed.wte.weight


def test_a_model_that_is_made_again(tmp_path: Path) -> None:
    folder = zeroshot.save_model(tmp_path / "model", zeroshot.bpe())
    served = ServedModel(str(folder), CPU)
    before = served.current
    served.refresh()
    assert served.current is before
    shutil.rmtree(folder)
    served.refresh()
    assert served.current is before
    zeroshot.save_model(folder, zeroshot.bpe(), n_layer=1)
    served.refresh()
    assert served.current is not before and served.current.gpt.depth == 1


def test_no_memory_for_a_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = zeroshot.save_model(tmp_path / "model", zeroshot.bpe())
    served = ServedModel(str(folder), CPU)
    before = served.current

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("pipeline.web.models.load_model", full)
    shutil.rmtree(folder)
    zeroshot.save_model(folder, zeroshot.bpe(), n_layer=1)
    served.refresh()
    assert served.current is before
    assert "stays as it was: out of memory" in capsys.readouterr().err


def test_a_damaged_model_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zeroshot.save_model(tmp_path / "model", zeroshot.bpe())
    write_manifest(folder)
    served = ServedModel(str(folder), CPU)
    before = served.current
    time.sleep(0.01)
    flip_a_bit(folder / "model.safetensors")
    served.refresh()
    assert served.current is before
    assert "not what was saved" in capsys.readouterr().err
