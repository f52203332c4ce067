"""Baselines are measured on the text that the model is measured on."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.config.params import BASELINES as BASELINE_NAMES
from pipeline.config.paths import BASELINES
from pipeline.config.validation import read_yaml
from pipeline.corpus.sources import TailSplit
from pipeline.evaluate.baselines import evaluate_baseline, file_name, label
from pipeline.evaluate.kneser_ney import KneserNey
from pipeline.evaluate.loss import evaluate
from pipeline.model.gpt import GPT
from pipeline.storage.files import write_text
from pipeline.tokens.batches import evaluation_windows
from pipeline.tokens.shards import Tokens, load_manifest, open_split
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from pipeline.tokens.write_shards import tokenize
from pipeline.weights.model_folder import save_config, save_weights
from tests import tiny

CPU = torch.device("cpu")
NGRAMS = ["uniform", "unigram", "bigram", "trigram"]


def saved_model(folder: Path, tokenizer: Tokenizer) -> GPT:
    model = tiny.model(vocab_size=tokenizer.vocab_size)
    folder.mkdir(parents=True)
    save_weights(model.state_dict(), folder)
    save_config(tiny.config(vocab_size=tokenizer.vocab_size), folder)
    tokenizer.save(folder)
    return model


def val_text(tokens_folder: Path) -> str:
    val = open_split(tokens_folder, "val")
    return load_tokenizer(tokens_folder).decode(val.read(0, len(val)).tolist())


def test_uniform_is_the_logarithm_of_the_vocabulary(tiny_tokens: Path) -> None:
    result = evaluate_baseline("uniform", tiny.params(), tiny_tokens).val
    manifest = load_manifest(tiny_tokens)
    assert result.loss == pytest.approx(math.log(manifest.vocab_size))
    assert result.perplexity == pytest.approx(manifest.vocab_size)
    assert result.tokens == manifest.val.tokens - 1
    assert result.bytes == len(val_text(tiny_tokens)[1:].encode())
    nats = result.loss * result.tokens
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / result.bytes)


def test_unigram_is_a_mixture_of_frequency_and_uniform(tiny_tokens: Path) -> None:
    train, val = (open_split(tiny_tokens, split) for split in ("train", "val"))
    size = load_manifest(tiny_tokens).vocab_size
    frequency = np.bincount(train.read(0, len(train)), minlength=size) / len(train)
    targets = val.read(1, len(val))
    mixtures = [
        -np.log(weight * frequency[targets] + (1 - weight) / size).mean()
        for weight in np.linspace(0, 1, 1001)[:-1]
    ]
    loss = evaluate_baseline("unigram", tiny.params(), tiny_tokens).val.loss
    assert min(mixtures) <= loss < min(mixtures) + 0.01  # the weight is fitted to other text


def test_longer_contexts_predict_better(tiny_tokens: Path) -> None:
    losses = [evaluate_baseline(name, tiny.params(), tiny_tokens).val.loss for name in NGRAMS]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1


def test_kneser_ney_is_fitted_to_the_training_split(tiny_tokens: Path) -> None:
    train, val = (open_split(tiny_tokens, split) for split in ("train", "val"))
    model = KneserNey.fit(train.read(0, len(train)), load_manifest(tiny_tokens).vocab_size, order=5)
    result = evaluate_baseline("kneser-ney", tiny.params(), tiny_tokens)
    assert result.val.loss == pytest.approx(model.nll(val.read(0, len(val))).mean())
    assert result.train is not None
    assert (
        result.train.loss < result.val.loss < evaluate_baseline("bigram", tiny.params(), tiny_tokens).val.loss
    )


def test_ngrams_are_counted_on_the_first_training_tokens_alone(tiny_tokens: Path, tmp_path: Path) -> None:
    text = tiny.text()
    write_text(tmp_path / "raw" / "a.txt", "x" * 1000 + text)
    folder = tmp_path / "tokens"
    tokenize(tmp_path / "raw", TailSplit(by="tail", fraction=0.1), "char", 257, 10**6, folder)
    everything = evaluate_baseline("bigram", tiny.params(), folder).val.loss
    few = evaluate_baseline("bigram", tiny.params("baselines.train_tokens=1000"), folder).val.loss
    assert everything < math.log(load_manifest(folder).vocab_size) < few  # it has seen nothing but x


def test_xz_is_the_size_of_the_compressed_text(tiny_tokens: Path) -> None:
    text = val_text(tiny_tokens).encode()
    result = evaluate_baseline("xz", tiny.params(), tiny_tokens).val
    bits = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert result.bytes == len(text)
    assert result.bits_per_byte == pytest.approx(bits / len(text))
    assert result.loss * result.tokens == pytest.approx(bits * math.log(2))


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_results_repeat_and_are_json(name: str, tiny_tokens: Path) -> None:
    result = evaluate_baseline(name, tiny.params(), tiny_tokens)
    assert result == evaluate_baseline(name, tiny.params(), tiny_tokens)
    assert json.loads(json.dumps(result.as_json(), allow_nan=False)) == result.as_json()


def test_a_saved_model_is_evaluated_on_the_whole_split(tiny_tokens: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokens)
    model = saved_model(tmp_path / "model", tokenizer)
    result = evaluate_baseline(str(tmp_path / "model"), tiny.params(), tiny_tokens).val
    windows = evaluation_windows(open_split(tiny_tokens, "val"), 8, batch_size=5)
    expected = evaluate(model, windows, tokenizer.token_bytes, CPU)
    assert result.loss == pytest.approx(expected.loss, abs=1e-6)
    assert result.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-6)
    uniform = evaluate_baseline("uniform", tiny.params(), tiny_tokens).val
    assert (result.tokens, result.bytes) == (uniform.tokens, uniform.bytes)


def test_a_model_with_another_tokenizer_reads_the_same_text(tiny_tokens: Path, tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(end_of_text=False)
    model = saved_model(tmp_path / "model", tokenizer)
    result = evaluate_baseline(str(tmp_path / "model"), tiny.params(), tiny_tokens).val
    text = val_text(tiny_tokens).encode()
    windows = evaluation_windows(Tokens([np.frombuffer(text, dtype=np.uint8)]), 8, batch_size=5)
    expected = evaluate(model, windows, np.ones(256, dtype=np.int64), CPU)
    assert result.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-6)
    assert (result.tokens, result.bytes) == (len(text) - 1, len(text) - 1)
    assert result.bytes == evaluate_baseline("uniform", tiny.params(), tiny_tokens).val.bytes


@pytest.mark.parametrize("same", [True, False])
def test_a_model_may_read_the_start_alone(tiny_tokens: Path, tmp_path: Path, same: bool) -> None:
    own = load_tokenizer(tiny_tokens)
    tokenizer = own if same else ByteTokenizer(end_of_text=False)
    model = saved_model(tmp_path / "model", tokenizer)
    result = evaluate_baseline(str(tmp_path / "model"), tiny.params("baselines.eval_tokens=100"), tiny_tokens)
    assert result.train is not None and result.as_json()["first_tokens"] == 100
    for split, evaluation in (("val", result.val), ("train", result.train)):
        ids = open_split(tiny_tokens, split).read(0, 100)  # type: ignore[arg-type]
        ids = ids if same else np.frombuffer(own.decode(ids.tolist()).encode(), dtype=np.uint8)
        windows = evaluation_windows(Tokens([ids]), 8, batch_size=5)
        expected = evaluate(model, windows, tokenizer.token_bytes, CPU)
        assert evaluation.loss == pytest.approx(expected.loss, abs=1e-6)
        assert (evaluation.tokens, evaluation.bytes) == (expected.tokens, expected.bytes)


def test_a_start_that_is_everything_is_no_start(tiny_tokens: Path, tmp_path: Path) -> None:
    saved_model(tmp_path / "model", load_tokenizer(tiny_tokens))
    everything = len(open_split(tiny_tokens, "val"))
    some, more, whole = (
        evaluate_baseline(str(tmp_path / "model"), tiny.params(f"baselines.eval_tokens={limit}"), tiny_tokens)
        for limit in (everything, 10 * everything, "")
    )
    assert some == more == whole and whole.first_tokens is None


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_counts_and_a_compressor_read_the_whole_split(name: str, tiny_tokens: Path) -> None:
    bounded = evaluate_baseline(name, tiny.params("baselines.eval_tokens=100"), tiny_tokens)
    assert bounded == evaluate_baseline(name, tiny.params(), tiny_tokens)


def test_half_a_character_at_the_end_is_left_out(tmp_path: Path) -> None:
    write_text(tmp_path / "raw" / "a.txt", "né" * 100)
    folder = tmp_path / "tokens"
    tokenize(tmp_path / "raw", TailSplit(by="tail", fraction=0.5), "byte", 257, 10**6, folder)
    val = open_split(folder, "val")
    cut = next(cut for cut in range(10, 13) if val.read(cut - 1, cut)[0] == "é".encode()[0])
    saved_model(tmp_path / "model", CharTokenizer(set("né"), end_of_text=False))
    result = evaluate_baseline(str(tmp_path / "model"), tiny.params(f"baselines.eval_tokens={cut}"), folder)
    assert result.val.tokens == len(bytes(val.read(0, cut - 1).tolist()).decode()) - 1


def test_a_model_that_cannot_read_the_text_names_the_character(tiny_tokens: Path, tmp_path: Path) -> None:
    characters = set(tiny.text()) - {"é"}
    saved_model(tmp_path / "model", CharTokenizer(characters, end_of_text=False))
    assert "é" in val_text(tiny_tokens)
    with pytest.raises(UserError, match=r"character 'é' \(U\+00E9"):
        evaluate_baseline(str(tmp_path / "model"), tiny.params(), tiny_tokens)


def test_unknown_baseline_is_named(tiny_tokens: Path) -> None:
    with pytest.raises(UserError, match="model fourgram: no such folder; train a model first") as error:
        evaluate_baseline("fourgram", tiny.params(), tiny_tokens)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tiny_tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as error:
        evaluate_baseline(str(tmp_path), tiny.params(), tiny_tokens)
    assert str(tmp_path) in str(error.value)


def test_every_baseline_says_how_it_is_smoothed() -> None:
    assert [label(name) for name in (*BASELINE_NAMES, "gpt2")] == [
        "uniform",
        "unigram",
        "bigram, interpolated",
        "trigram, interpolated",
        "5-gram, Kneser-Ney",
        "xz",
        "gpt2",
    ]


@pytest.mark.parametrize("name", ["xz", "models/one", "/models/one"])
def test_the_result_is_where_dvc_expects_it(name: str) -> None:
    (out,) = read_yaml(tiny.ROOT / "dvc.yaml")["stages"]["eval_baselines"]["outs"]
    assert BASELINES / file_name(name) == Path(out.replace("${item.model}", name))
