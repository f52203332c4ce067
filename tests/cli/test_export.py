"""`make export` writes a folder that transformers loads as the same model, and a card that describes it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from pipeline.cli.export import Format, main
from pipeline.config.paths import METRICS, MODEL, RECORD
from pipeline.corpus.sources import DatasetSpec, write_spec
from pipeline.model.load import load_model
from pipeline.storage.checksums import (
    damage,
    read_checked_json,
    sha256_file,
    write_checked_json,
    write_record,
)
from pipeline.storage.files import write_json, write_text
from pipeline.storage.lock import writing
from pipeline.tokens.tokenizers import CharTokenizer, Tokenizer
from pipeline.weights.hub_models import EXPORTED
from pipeline.weights.model_folder import save_config, save_weights
from pipeline.weights.open import open_model
from tests import tiny
from tests.conftest import Ended
from tests.family import RECURRENT
from tests.hub_server import COMMIT, serving_hub, use_hub

Stage = Callable[..., Ended]

FILES = sorted(set(EXPORTED) - {"depth.png"})
CHARACTERS = CharTokenizer("\nabcdefgh", end_of_text=True)  # 10 ids; the tiny model has 11 rows


def content(folder: Path) -> dict[Path, str]:
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The current folder is empty but for results/model."""
    monkeypatch.chdir(tmp_path)

    def save(tokenizer: Tokenizer = CHARACTERS, **switches: Any) -> Path:
        path = Path("results/model")
        path.mkdir(parents=True)
        save_weights(tiny.model(**switches).state_dict(), path)
        save_config(tiny.config(**switches), path)
        tokenizer.save(path)
        return path

    return save


def test_the_command_writes_a_folder_and_replaces_it(folder: Callable[..., Path], stage: Stage) -> None:
    folder(**RECURRENT)
    for arguments, layers in ((), 3), (("--recurrent-depth", "12"), 12):
        ended = stage("export", *arguments)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith(f"results/export: GPT2LMHeadModel with {layers} layers")
        assert GPT2LMHeadModel.from_pretrained("results/export").config.n_layer == layers
        assert names("results") == ["export", "model"]
    assert stage("export", "--out", "elsewhere/mine", "--model", "results/model").status == 0
    assert names("elsewhere/mine") == FILES


@pytest.mark.parametrize(("format", "out"), [("transformers", "export"), ("nanogpt", "nanogpt")])
def test_of_two_exports_at_once_the_second_waits(
    folder: Callable[..., Path], stage: Stage, format: str, out: str
) -> None:
    folder(CharTokenizer("abcdefgh", end_of_text=False))
    with ThreadPoolExecutor() as threads, writing(Path("results", out)):
        second = threads.submit(main, format=Format(format))
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        Path("results", f"{out}.tmp").mkdir()  # as the first one is writing it
        Path("results", f"{out}.tmp").rmdir()
    second.result(timeout=30)
    assert damage(Path("results", out)) is None
    assert names("results") == sorted([out, "model"])
    assert stage("export", "--format", format).status == 0  # which replaces it


@torch.no_grad()
@pytest.mark.parametrize("switches", [{}, {"tie_word_embeddings": False, "bias": False}, RECURRENT])
def test_transformers_reads_the_same_text_as_the_same_model(
    folder: Callable[..., Path], stage: Stage, switches: dict[str, Any]
) -> None:
    folder(**switches)
    assert stage("export").status == 0
    loaded: Any = AutoModelForCausalLM.from_pretrained("results/export", output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained("results/export")
    text = "bad\nface"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == CHARACTERS.encode(text).tolist()
    expected = tiny.model(**switches)(ids)[..., : CHARACTERS.vocab_size]
    assert (theirs(ids).logits - expected).abs().max() <= 1e-5

    assert theirs.config.vocab_size == len(tokenizer) == 10
    assert (theirs.config.n_positions, theirs.config.n_ctx, tokenizer.model_max_length) == (8, 8, 8)
    for config in (theirs.config, GenerationConfig.from_pretrained("results/export")):
        assert (config.bos_token_id, config.eos_token_id) == (9, 9)
    written = theirs.generate(ids[:, :1], do_sample=True, max_new_tokens=7, pad_token_id=9)
    assert set(tokenizer.decode(written[0], skip_special_tokens=True)) <= set("\nabcdefgh")


def test_without_an_end_of_text_no_id_ends_a_text(folder: Callable[..., Path], stage: Stage) -> None:
    folder(CharTokenizer("abc", end_of_text=False))
    assert stage("export").status == 0
    for name in ("config.json", "generation_config.json"):
        values = json.loads(Path("results/export", name).read_text())
        assert (values["bos_token_id"], values["eos_token_id"]) == (None, None)
    assert AutoTokenizer.from_pretrained("results/export").eos_token is None


@torch.no_grad()
def test_an_export_is_a_model_again_and_is_exported_to_the_same_bytes(
    folder: Callable[..., Path], stage: Stage
) -> None:
    folder(bias=False)
    assert stage("export").status == 0
    stored = open_model("results/export")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    expected = tiny.model(bias=False)(ids)[..., :10]
    assert (load_model(stored)(ids) - expected).abs().max() <= 1e-5
    assert stored.tokenizer().to_json() == CHARACTERS.to_json()
    assert stage("export", "--model", "results/export", "--out", "again").status == 0
    for name in set(FILES) - {"README.md", "manifest.json"}:
        assert Path("again", name).read_bytes() == Path("results/export", name).read_bytes()


def test_a_model_of_which_nothing_is_known_has_a_card_all_the_same(
    folder: Callable[..., Path], stage: Stage
) -> None:
    folder().rename("mine")
    write_json(Path("results/metrics.json"), {"val_loss": 1.0})  # of another model
    assert stage("export", "--model", "mine").status == 0
    card = ModelCard.load("results/export/README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "| n_embd | 16 |" in card.text
    assert "## Results" not in card.text and "licen" not in card.content.lower()


def test_the_card_tells_of_the_run(tiny_project: Path, stage: Stage) -> None:
    values = {
        "description": "Ships and birds",
        "source": {"kind": "pydocs"},
        "split": {"by": "tail", "fraction": 0.2},
    }
    write_spec(DatasetSpec.model_validate(values), Path("data/tiny/dataset.yaml"))
    assert stage("train", "-S", "train.max_iters=3", "-S", "train.learning_rate=0.03").status == 0
    assert stage("eval_baselines", "bigram").status == 0
    assert stage("depth_curve").status == 0
    picture = Path("results/depth.png").read_bytes()
    Path("results/depth.png").chmod(0o444)  # as a link into DVC's cache
    assert stage("export").status == 0
    assert names("results/export") == sorted(EXPORTED)
    assert Path("results/export/depth.png").read_bytes() == picture

    card = Path("results/export/README.md").read_text()
    metrics = json.loads(Path("results/metrics.json").read_text())
    manifest = json.loads(Path("data/tiny/char/manifest.json").read_text())
    bigram = json.loads(Path("results/baselines/bigram.json").read_text())
    for part in (
        "tiny: Ships and birds.",
        f"GPT-2 with {metrics['params']:,} parameters, trained on tiny\n",
        f"| train | {manifest['train']['tokens']:,} | {manifest['train']['utf8_bytes']:,} |",
        f"| val | {manifest['val']['tokens']:,} | {manifest['val']['utf8_bytes']:,} |",
        "| min_lr | 0.001 |",
        "| n_layer | 2 |",
        "| learning_rate | 0.03 |",  # of the run, not of params.yaml
        f"3 steps, {metrics['tokens']:,} tokens",
        f"PyTorch {torch.__version__}",
        f"| loss, nats per token | {metrics['val_loss']:.4f} |",
        f"| perplexity per token | {math.exp(metrics['val_loss']):,.2f} |",
        f"| bits per byte | {metrics['val_bpb']:.4f} |",
        f"{bigram['val_bpb']:.4f} |",
        "](depth.png)",
        "make sample MODEL=",
    ):
        assert part in card
    assert "this export" not in card  # which has as many parameters
    (result, *_) = ModelCard.load("results/export/README.md").data.eval_results
    assert (result.dataset_type, result.metric_value) == ("tiny", round(metrics["val_loss"], 4))
    assert stage("export").status == 0
    assert Path("results/export/README.md").read_text() == card

    (tiny_project / "data/tiny/char/manifest.json").unlink()  # other data, or none
    assert stage("export").status == 0
    card = Path("results/export/README.md").read_text()
    assert f"{metrics['val_loss']:.4f}" in card and "Ships" not in card


def test_the_card_has_no_picture_of_other_weights(tiny_project: Path, stage: Stage) -> None:
    assert stage("train", "-S", "train.max_iters=1").status == 0
    assert stage("depth_curve").status == 0
    assert stage("train", "-S", "train.max_iters=2").status == 0
    assert stage("export").status == 0
    assert names("results/export") == FILES
    assert "depth.png" not in Path("results/export/README.md").read_text()


def test_the_card_has_no_figures_of_other_weights(tiny_project: Path, stage: Stage) -> None:
    assert stage("train", "-S", "train.max_iters=1").status == 0
    older = METRICS.read_text()
    assert stage("train", "-S", "train.max_iters=2").status == 0
    shutil.rmtree("runs")
    exported = stage("export")
    assert exported.status == 0, exported.err
    assert "| learning_rate |" in Path("results/export/README.md").read_text()  # kept beside the model

    newer = METRICS.read_text()
    for break_it, reason in (
        (lambda: write_text(METRICS, older), "results/metrics.json: not of the run"),
        (RECORD.unlink, "results/run.json: no such file"),
    ):
        write_text(METRICS, newer)
        break_it()
        exported = stage("export")
        assert exported.status == 2 and reason in exported.err
    METRICS.unlink()
    assert stage("export").status == 0, "its user may have put a model there"
    card = Path("results/export/README.md").read_text()
    assert "## Results" not in card and "## Training" not in card and "trained on" not in card


def test_the_card_counts_the_models_own_parameters(tiny_project: Path, stage: Stage) -> None:
    switches = ("-S", "model.bias=false", "-S", "train.decay_lr=false")
    assert stage("train", "-S", "train.max_iters=1", *switches).status == 0
    params = json.loads(Path("results/metrics.json").read_text())["params"]
    assert stage("export").status == 0
    in_file = sum(tensor.numel() for tensor in load_file("results/export/model.safetensors").values())
    assert params < in_file
    card = Path("results/export/README.md").read_text()
    assert f"# GPT-2 with {params:,} parameters, " in card
    assert f"parameters, this export {in_file:,}: missing biases are added as zeros." in card
    assert "learning_rate" in card
    assert not any(name in card for name in ("warmup_iters", "lr_decay_iters", "min_lr"))


@pytest.mark.parametrize("kind", ["files", "nanogpt"])
def test_the_card_tells_nobody_of_the_users_folders(tiny_project: Path, stage: Stage, kind: str) -> None:
    file = {"path": "/home/me/secret.txt", "sha256": 64 * "0"}
    values = {
        "description": "made by `make train-on` from /home/me/secret.txt",
        "source": {"kind": kind, **({"paths": [file]} if kind == "files" else {"train": file, "val": file})},
        "split": {"by": "tail", "fraction": 0.2} if kind == "files" else {"by": "source"},
    }
    write_spec(DatasetSpec.model_validate(values), Path("data/tiny/dataset.yaml"))
    assert stage("train", "-S", "train.max_iters=1").status == 0
    Path("saved").mkdir()
    shutil.move("results/model", "saved/secret")
    params = Path("params.yaml").read_text()
    write_text(Path("params.yaml"), params.replace("  - xz\n", "  - saved/secret\n"))
    assert stage("eval_baselines", "saved/secret").status == 0
    init_from = f"train.init_from={tiny_project / 'saved' / 'secret'}"
    assert stage("train", "-S", "train.max_iters=1", "-S", init_from).status == 0
    assert stage("export").status == 0
    card = Path("results/export/README.md").read_text()
    assert "parameters, trained on tiny\n" in card and "## Data\n\ntiny.\n" in card
    assert "| init_from | a local model |" in card and "| another model " in card
    assert "secret" not in card and str(tiny_project) not in card
    assert ModelCard.load("results/export/README.md").data.base_model is None


def test_the_card_names_the_model_on_the_hub_that_was_finetuned(
    tiny_project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage("train", "-S", "train.max_iters=1").status == 0
    assert stage("export").status == 0
    name = f"somebody/model@{COMMIT}"
    with serving_hub("somebody/model", Path("results/export"), kind="model") as endpoint:
        use_hub(endpoint, tiny_project / "home", monkeypatch)
        assert stage("train", "-S", "train.max_iters=1", "-S", f"train.init_from={name}").status == 0
    assert stage("export").status == 0
    card = Path("results/export/README.md").read_text()
    assert "parameters, finetuned from somebody/model on tiny\n" in card
    assert f"| init_from | {name} |" in card
    assert ModelCard.load("results/export/README.md").data.base_model == "somebody/model"

    about = read_checked_json(RECORD, remedy="")
    write_checked_json(RECORD, {key: value for key, value in about.items() if key != "start"})
    assert stage("export").status == 0  # of a run that did not record it
    assert ModelCard.load("results/export/README.md").data.base_model is None


def test_the_card_has_the_figures_of_the_weights_that_were_kept(tiny_project: Path, stage: Stage) -> None:
    keep_best = "train.always_save_checkpoint=false"
    assert stage("train", "-S", "train.max_iters=3", "-S", keep_best).status == 0
    metrics = json.loads(Path("results/metrics.json").read_text()) | {"val_loss": 1.23456}
    record = read_checked_json(RECORD, remedy="")
    record["finished"]["perplexity"] = math.exp(1.23456)
    write_json(Path("results/metrics.json"), metrics)
    write_record(RECORD, record, [METRICS, *MODEL.iterdir()])
    assert stage("export").status == 0
    card = Path("results/export/README.md").read_text()
    assert "| loss, nats per token | 1.2346 |" in card
    (this_model,) = (line for line in card.splitlines() if line.startswith("| this model "))
    assert " 1.2346 " in this_model and f"{math.exp(1.23456):.2f}" in this_model


def test_the_card_says_when_its_figures_are_of_another_depth(tiny_project: Path, stage: Stage) -> None:
    loop = ("-S", "model.recurrent_shared_weights=true", "-S", "model.recurrent_depth=2")
    assert stage("train", "-S", "train.max_iters=1", *loop).status == 0
    for arguments, said in ((), False), (("--recurrent-depth", "5"), True):
        assert stage("export", *arguments).status == 0
        card = Path("results/export/README.md").read_text()
        assert ("on the validation text, with 2 layers" in card) is said
        assert f"the model has {5 if said else 2} layers" in card


@pytest.mark.parametrize("loop", [False, True])
def test_an_export_serves_wherever_a_model_does(tiny_project: Path, stage: Stage, loop: bool) -> None:
    shape = [
        "model.bias=true",
        f"model.recurrent_shared_weights={json.dumps(loop)}",
        "model.recurrent_depth=2",
    ]
    switches = [word for setting in [*shape, "model.dropout=0.0"] for word in ("-S", setting)]
    assert stage("train", "-S", "train.max_iters=5", *switches).status == 0
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert stage("export").status == 0
    Path("results/export").rename("exported")

    assert stage("eval_baselines", "exported").status == 0
    measured = json.loads(Path("results/baselines/exported.json").read_text())
    assert measured["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-5)
    ours, theirs = (
        stage("sample", "--model", model, "--out", "-", "--start", "the sea", "-S", "sample.greedy=true")
        for model in ("results/model", "exported")
    )
    assert (ours.status, theirs.status) == (0, 0)
    assert ours.out == theirs.out

    start = ["train.init_from=exported", "train.max_iters=0", "model.dropout=0.0"]
    assert stage("train", *(word for setting in start for word in ("-S", setting))).status == 0
    begun = json.loads(Path("results/metrics.json").read_text())
    assert begun["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("switches", "arguments", "expected"),
    [
        ({"moe": True}, "", "model.moe = true: Hugging Face's GPT-2 does not support it"),
        (
            {},
            "--recurrent-depth 4",
            "recurrent depth 4: this model has 3 layers and no loop; leave it out",
        ),
        ({}, "--model nowhere", "model nowhere: no such folder"),
        (
            {},
            "--out results/model",
            "--out results/model: exists and is not an export; name a new folder",
        ),
        (
            {},
            "--out results/model/config.json/x",
            "results/model/config.json: cannot be written (File exists); use another folder",
        ),
        ({}, "--out results/model/config.json", "--out results/model/config.json: exists and is not"),
        (
            {"vocab_size": 9},
            "",
            "results/model: its tokenizer has 10 ids, but the model has only 9; put the tokenizer there",
        ),
    ],
)
def test_what_cannot_be_exported_gets_one_line_and_costs_nothing(
    folder: Callable[..., Path], stage: Stage, switches: dict[str, Any], arguments: str, expected: str
) -> None:
    folder(**switches)
    before = content(Path())
    ended = stage("export", *arguments.split())
    assert ended.status == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert expected in ended.err
    assert content(Path()) == before
