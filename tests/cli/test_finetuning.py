"""From a folder that transformers saved to a finetuned model, through the stages as a user calls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from pipeline.cli.baselines import compare
from pipeline.cli.preset import apply
from pipeline.config.params import load_params
from pipeline.evaluate.comparison import OURS
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import CharTokenizer, load_tokenizer
from tests import tiny
from tests.conftest import Ended
from tests.weights.test_open import saved

Stage = Callable[..., Ended]
FEW_STEPS = ["-S", "train.max_iters=3", "-S", "train.lr_decay_iters=3", "-S", "train.eval_interval=3"]


@pytest.fixture
def theirs(tiny_project: Path) -> GPT2LMHeadModel:
    """A model in saved/gpt2 of as many ids as the tiny project's tokenizer has."""
    vocab_size = load_tokenizer(Path("data/tiny/char")).vocab_size
    return saved(Path("saved/gpt2"), vocab_size=vocab_size)


def start_from_it(stage: Stage) -> None:
    """Its vocabulary is none that is known, so the tokens stay the project's."""
    assert stage("start_from", "saved/gpt2", "--block-size", "8").status == 0
    assert load_params().tokenizer.name == "char"


def test_a_model_is_put_into_the_parameters(theirs: GPT2LMHeadModel, stage: Stage) -> None:
    before = load_params()
    ended = stage("start_from", "saved/gpt2")
    after = load_params()
    assert (ended.status, ended.err) == (0, "")
    assert "params.yaml: training starts from saved/gpt2" in ended.out
    assert "  model.block_size: 8 -> 16" in ended.out
    assert after.train.init_from == "saved/gpt2"
    assert (after.model.activation, after.model.bias, after.model.n_embd) == ("gelu_new", True, 16)
    assert after.model.dropout == before.model.dropout
    assert after.train.model_copy(update={"init_from": "scratch"}) == before.train
    assert "# attention heads in each block" in Path("params.yaml").read_text()


def test_a_published_model_needs_no_download_to_be_put_there(tiny_project: Path, stage: Stage) -> None:
    assert stage("start_from", "gpt2-xl").status == 0
    params = load_params()
    assert (params.model.n_layer, params.model.n_head, params.model.n_embd) == (48, 25, 1600)
    assert (params.tokenizer.name, params.tokenizer.model) == ("gpt2", None)
    params.check_sections()


def test_our_own_model_brings_its_tokenizer(tiny_project: Path, stage: Stage) -> None:
    assert stage("train", *FEW_STEPS).status == 0
    Path("results/model").rename("saved")
    write_text(Path("mine.txt"), tiny.text(300))
    assert stage("start_from", "saved").status == 0
    assert stage("train_on", "mine.txt", "--no-run").status == 0
    assert (load_params().tokenizer.name, load_params().tokenizer.model) == ("pretrained", "saved")
    for name in ("download", "tokenize"):
        assert stage(name).status == 0
    tokens = Path("data/mine/pretrained/tokenizer.json")
    assert tokens.read_bytes() == Path("saved/tokenizer.json").read_bytes()
    ended = stage("train", *FEW_STEPS)
    assert ended.status == 0, ended.err


def test_finetuning_starts_from_the_very_weights(theirs: GPT2LMHeadModel, stage: Stage) -> None:
    start_from_it(stage)
    assert stage("train", "-S", "train.eval_only=true").status == 0
    tensors = load_file("results/model/model.safetensors")
    there = theirs.state_dict()
    assert torch.equal(tensors["embed.wte.weight"], there["transformer.wte.weight"])
    assert torch.equal(tensors["embed.wpe.weight"], there["transformer.wpe.weight"][:8])
    assert torch.equal(tensors["trunk.h.1.mlp.c_fc.weight"], there["transformer.h.1.mlp.c_fc.weight"].T)
    measured = json.loads(Path("results/metrics.json").read_text())
    assert stage("train", *FEW_STEPS, "-S", "train.learning_rate=0.01").status == 0
    assert json.loads(Path("results/metrics.json").read_text())["val_loss"] < measured["val_loss"]
    assert stage("sample", "--out", "-").status == 0


def test_a_checkpoint_of_a_run_is_a_model_too(tiny_project: Path, stage: Stage) -> None:
    assert stage("train", *FEW_STEPS).status == 0
    (checkpoint,) = Path("runs").glob("*/step-000000003")
    assert stage("eval_baselines", str(checkpoint)).status == 0
    figures = json.loads(Path(f"results/baselines/{checkpoint}.json").read_text())
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert figures["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-6)
    assert stage("sample", "--model", str(checkpoint), "--out", "-").status == 0


def test_a_checkpoint_whose_tokenizer_was_replaced_is_refused(tiny_project: Path, stage: Stage) -> None:
    assert stage("train", *FEW_STEPS).status == 0
    tokenizer = Path("data/tiny/char/tokenizer.json")
    write_text(tokenizer, tokenizer.read_text().replace("v", "w"))
    (checkpoint,) = Path("runs").glob("*/best")
    ended = stage("sample", "--model", str(checkpoint), "--out", "-")
    assert ended.status == 2
    assert f"{tokenizer} is not the tokenizer it was trained with" in ended.err


@pytest.mark.parametrize("format", ["transformers", "nanogpt"])
def test_what_lies_beside_an_export_is_not_lost(tiny_project: Path, stage: Stage, format: str) -> None:
    assert stage("train", *FEW_STEPS).status == 0
    write_text(Path("saved/mine.old/precious.txt"), "kept")
    ended = stage("export", "--format", format, "--out", "saved/mine")
    assert ended.status == 2 and "saved/mine.old is in the way of writing saved/mine" in ended.err
    assert Path("saved/mine.old/precious.txt").read_text() == "kept"


def test_a_model_that_read_the_start_alone_stands_beside_ours_on_that(
    theirs: GPT2LMHeadModel, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(Path("data/tiny/dataset.yaml"), (tiny.ROOT / "data/pydocs/dataset.yaml").read_text())
    text = Path("params.yaml").read_text().replace("  - xz\n", "  - saved/gpt2\n")
    write_text(Path("params.yaml"), text)
    assert stage("train", *FEW_STEPS).status == 0
    assert stage("eval_baselines", "saved/gpt2").status == 0
    capsys.readouterr()
    compare()
    assert "on the first" not in capsys.readouterr().out
    write_text(Path("params.yaml"), text.replace("  eval_tokens:", "  eval_tokens: 100"))
    assert "gpt2.json, on the first 100 tokens: val loss" in stage("eval_baselines", "saved/gpt2").out
    compare()
    compared = capsys.readouterr().out
    assert f"{OURS}, on the first 100 tokens" in compared and "saved/gpt2, on the first 100 tok" in compared
    whole, start = (
        next(row for row in json.loads(Path("results/baselines.json").read_text()) if key(row))
        for key in (
            lambda row: row["name"] == OURS and row["first_tokens"] is None,
            lambda row: row["name"] == OURS and row["first_tokens"] == 100,
        )
    )
    assert whole["val_loss"] == json.loads(Path("results/metrics.json").read_text())["val_loss"]
    assert 0 < abs(start["val_loss"] - whole["val_loss"]) < 0.5 and start["params"] == whole["params"]
    compare({"train"})  # a model that is out of date is compared nowhere
    assert OURS not in capsys.readouterr().out


def test_it_is_evaluated_beside_the_others_and_sampled_from(
    theirs: GPT2LMHeadModel, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = stage("eval_baselines", "saved/gpt2")
    assert ended.status == 0, ended.err
    figures = json.loads(Path("results/baselines/saved/gpt2.json").read_text())
    assert figures["params"] == theirs.num_parameters()
    assert {"val_loss", "train_loss", "perplexity", "val_bpb"} <= figures.keys()
    write_text(Path("data/tiny/dataset.yaml"), (tiny.ROOT / "data/pydocs/dataset.yaml").read_text())
    stage("eval_baselines", "unigram", "--out", "results/pretrained")
    text = Path("params.yaml").read_text()
    write_text(
        Path("params.yaml"),
        text.replace("  - xz\n", "  - saved/gpt2\n").replace("  - gpt2\n", "  - unigram\n"),
    )
    capsys.readouterr()
    compare()
    compared = capsys.readouterr().out
    assert "saved/gpt2" in compared and "unigram" in compared and "gpt2-xl" not in compared
    compare({"eval_baselines@saved/gpt2"})  # as DVC says when the folder has other weights by now
    out, err = capsys.readouterr()
    assert "saved/gpt2" not in out
    assert err == "note: out of date and left out: eval_baselines@saved/gpt2; run `dvc repro`\n"
    tokenizer = Path("data/tiny/char/tokenizer.json").read_text()
    write_text(Path("saved/gpt2/tokenizer.json"), tokenizer)
    sampled = stage("sample", "--model", "saved/gpt2", "--out", "-", "--start", "the ")
    assert sampled.status == 0 and sampled.out.startswith("the ")


def test_only_a_model_that_is_up_to_date_is_compared(
    tiny_project: Path, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(Path("data/tiny/dataset.yaml"), (tiny.ROOT / "data/pydocs/dataset.yaml").read_text())
    assert stage("train", *FEW_STEPS).status == 0
    compare()
    out, err = capsys.readouterr()
    assert OURS in out and err == ""
    compare({"train"})
    out, err = capsys.readouterr()
    assert OURS not in out
    assert err == "note: out of date and left out: train; run `dvc repro`\n"


def test_samples_of_another_model_are_shown_only(theirs: GPT2LMHeadModel, stage: Stage) -> None:
    shutil.copy("data/tiny/char/tokenizer.json", "saved/gpt2")
    assert stage("sample", "--model", "saved/gpt2", "--start", "the ").out.startswith("the ")
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nowhere.txt --model saved/gpt2", "TEXT=nowhere.txt: no such file"),
        ("mine.txt --model saved/gpt3", "model saved/gpt3: no such folder"),
        ("mine.txt --model ./results/model", "model ./results/model: training replaces this folder; copy it"),
        ("mine.txt --model saved/gpt2 --block-size 99", "--block-size 99: saved/gpt2 has 16 positions"),
        ("mine.txt --model saved/gpt2", "MODEL=saved/gpt2: it has no tokenizer, and"),
    ],
)
def test_finetune_on_changes_all_or_nothing(
    theirs: GPT2LMHeadModel, stage: Stage, arguments: str, expected: str
) -> None:
    write_text(Path("mine.txt"), tiny.text(300))
    apply("default", force=True, folder=tiny.ROOT / "presets")
    before = Path("params.yaml").read_text()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.config.presets.FOLDER", tiny.ROOT / "presets")
        ended = stage("finetune_on", *arguments.split())
        assert ended.status == 2 and ended.err.startswith(f"error: {expected}")
        assert Path("params.yaml").read_text() == before
        assert not Path("data/mine").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("start_from saved/gpt2 --block-size 17", "--block-size 17: saved/gpt2 has 16 positions; use that"),
        ("start_from nowhere", "model nowhere: no such folder; train a model first"),
        ("start_from results/model", "model results/model: training replaces this folder; copy it ("),
        (
            "train -S train.init_from=saved/gpt2",
            "model.activation = gelu, but train.init_from = saved/gpt2 has",
        ),
        ("sample --model saved/gpt2", "saved/gpt2: no tokenizer.json there, and "),
        ("eval_baselines saved/gpt2/", "baseline saved/gpt2/: name a folder without .."),
    ],
)
def test_mistakes_get_one_line(theirs: GPT2LMHeadModel, stage: Stage, arguments: str, expected: str) -> None:
    before = Path("params.yaml").read_text()
    ended = stage(*arguments.split())
    assert ended.status == 2
    assert ended.err.startswith(f"error: {expected}") and ended.err.count("\n") == 1
    assert Path("params.yaml").read_text() == before


def test_the_start_is_checked_before_dvc_clears_anything(theirs: GPT2LMHeadModel, stage: Stage) -> None:
    write_text(Path("data/tiny/dataset.yaml"), (tiny.ROOT / "data/pydocs/dataset.yaml").read_text())
    for name, expected in (
        ("saved/gpt2", "model.activation = gelu, but "),
        ("nowhere", "train.init_from: model nowhere: no "),
        ("results/model", "train.init_from: model results/model: training replaces this folder; copy it"),
    ):
        ended = stage("check", "-S", f"train.init_from={name}")
        assert ended.status == 2 and expected in ended.err
    ended = stage(
        "check", "-S", "tokenizer.name=pretrained", "-S", f"tokenizer.model={Path('results/model').resolve()}"
    )
    assert ended.status == 2 and "tokenizer.model: model /" in ended.err and "copy it" in ended.err
    start_from_it(stage)
    assert stage("check").status == 0


def test_another_tokenizer_is_refused_with_the_way_out(theirs: GPT2LMHeadModel, stage: Stage) -> None:
    start_from_it(stage)
    characters = "".join(load_tokenizer(Path("data/tiny/char")).characters)  # type: ignore[attr-defined]
    CharTokenizer(characters.replace("v", "w").replace("s", "z"), end_of_text=False).save(Path("saved/gpt2"))
    ended = stage("train")
    assert ended.status == 2
    assert "set tokenizer.name = pretrained and tokenizer.model = saved/gpt2" in ended.err


def test_finetune_on_may_be_called_again_but_hand_edits_are_kept(tmp_path: Path) -> None:
    params_file = tmp_path / "params.yaml"
    folder = tiny.ROOT / "presets"
    apply("finetune-on", folder=folder, params_file=params_file)
    text = params_file.read_text()
    filled_in = text.replace("n_layer: 12", "n_layer: 48").replace("init_from: gpt2", "init_from: gpt2-xl")
    write_text(params_file, filled_in.replace("dataset: pydocs", "dataset: mine"))
    apply("finetune-on", folder=folder, params_file=params_file)
    assert params_file.read_text() == text
