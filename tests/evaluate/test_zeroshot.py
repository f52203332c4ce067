"""The tasks' figures, by hand and on the real files, and one line for a file that is none of theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from pipeline.config.errors import UserError
from pipeline.evaluate import zeroshot
from pipeline.evaluate.scoring import Group, Score, encode_pair, score
from pipeline.evaluate.tasks import HellaSwag, Lambada, WikiText2
from pipeline.evaluate.zeroshot import TASKS, evaluate_task, file_name, open_task
from pipeline.model.gpt import GPT
from pipeline.storage.checksums import read_checked_json, sha256_file
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests import zeroshot as small
from tests.conftest import Ended
from tests.model.test_gpt import hugging_face_twin

CPU = torch.device("cpu")
Stage = Callable[..., Ended]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A small file of each task."""
    write_text(tmp_path / "wikitext2.raw", small.WIKITEXT)
    return {
        "hellaswag": small.write_rows(tmp_path / "hellaswag.jsonl", small.HELLASWAG),
        "lambada": small.write_rows(tmp_path / "lambada.jsonl", small.LAMBADA),
        "wikitext2": tmp_path / "wikitext2.raw",
    }


def log_probability(model: GPT, tokenizer: Tokenizer, context: str, continuation: str) -> Score:
    pair = encode_pair(tokenizer, context, continuation)
    ((_, (found,)),) = score(model, [Group(pair[0], [pair[1]])], tokenizer.vocab_size, CPU, 1)
    return found


def test_hellaswag_by_hand(files: dict[str, Path]) -> None:
    rows: list[dict[str, Any]] = [
        {"ctx": "A ship: the", "endings": ["sea.", "old, old sea of red birds."], "label": 1},
        {"ctx": "A ship: a", "endings": ["bird", "bird sings", "red"], "label": "0"},
    ]
    tokenizer = small.bpe()
    model = small.model(tokenizer)
    right = right_norm = 0
    for row in rows:
        scores = [log_probability(model, tokenizer, row["ctx"], " " + ending)[0] for ending in row["endings"]]
        by_length = [one / len(ending) for one, ending in zip(scores, row["endings"], strict=True)]
        right += scores.index(max(scores)) == int(row["label"])
        right_norm += by_length.index(max(by_length)) == int(row["label"])
    path = small.write_rows(files["hellaswag"].with_name("own.jsonl"), rows)
    figures = evaluate_task(open_task("hellaswag", tokenizer, 48, data=path), model, tokenizer, CPU, 4)
    assert figures == {"accuracy": right / 2, "accuracy_norm": right_norm / 2}
    task = HellaSwag(path, tokenizer, 48, None)
    assert task.tally(0, [Score(-5, False), Score(-6, False)]).tolist() == [0, 1]  # -5/4 and -6/26
    assert task.tally(1, [Score(-5, False), Score(-6, False), Score(-9, False)]).tolist() == [1, 0]


def test_hellaswag_is_cleaned(files: dict[str, Path]) -> None:
    tokenizer = ByteTokenizer(end_of_text=False)
    task = HellaSwag(files["hellaswag"], tokenizer, 48, 5)
    texts = [tokenizer.decode(context) for context, _ in task.groups]
    assert texts[0] == "Sailing: The old ship sails and a bird sings."
    assert texts[1] == "Sailing: The old ship sails over the sea and a bird sings. The crew"
    assert texts[2] == "Sailing: How to sail. Find a ship. A small one sails. A bird"
    assert texts[4].endswith("and a bird sings. It. then")
    assert [tokenizer.decode(ending) for ending in task.groups[0].continuations][
        2
    ] == "  They sing a small song."


def test_lambada_by_hand(files: dict[str, Path]) -> None:
    tokenizer = small.bpe()
    model = small.model(tokenizer)
    words = [row["text"].split(" ")[-1] for row in small.LAMBADA]
    contexts = [" ".join(row["text"].split(" ")[:-1]) for row in small.LAMBADA]
    found = [
        log_probability(model, tokenizer, context, f" {word}")
        for context, word in zip(contexts, words, strict=True)
    ]
    figures = evaluate_task(
        open_task("lambada", tokenizer, 48, data=files["lambada"]), model, tokenizer, CPU, 4
    )
    mean = sum(one.log_probability for one in found) / len(found)
    assert figures["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-5)
    assert figures["accuracy"] == sum(one.greedy for one in found) / len(found)


def test_wikitext2_by_hand(files: dict[str, Path]) -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    model = small.model(tokenizer)
    task = WikiText2(files["wikitext2"], tokenizer, 48, None)
    assert task.samples == small.WIKITEXT.count("\n")
    tokens = sum(len(new) for _, (new,) in task.groups)
    assert tokens == len(small.WIKITEXT.encode()) - 1
    nats = -sum(one.log_probability for _, (one,) in score(model, task.groups, tokenizer.vocab_size, CPU, 4))
    assert evaluate_task(task, model, tokenizer, CPU, 4) == {
        "word_perplexity": pytest.approx(math.exp(nats / len(small.WIKITEXT.split())), rel=1e-5),
        "bits_per_byte": pytest.approx(nats / math.log(2) / tokens, rel=1e-5),
        "perplexity": pytest.approx(math.exp(nats / tokens), rel=1e-5),
    }


@torch.no_grad()
def documented_perplexity(model: Any, ids: torch.Tensor, max_length: int, stride: int) -> float:
    """The recipe in transformers' documentation, its small simplifications included."""
    nats, tokens, last_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        window, labels = ids[:, begin:end], ids[:, begin:end].clone()
        labels[:, : last_end - begin if last_end else 0] = -100
        counted = int((labels != -100).sum()) - 1
        nats, tokens = nats + model(window, labels=labels).loss.item() * counted, tokens + counted
        last_end = end
        if end == ids.shape[1]:
            break
    return math.exp(nats / tokens)


@pytest.mark.mirror
def test_perplexity_is_that_of_the_documented_recipe(mirrored: Callable[[str], Path]) -> None:
    path = mirrored(Lambada.URL).parents[3] / "local" / "wikitext-2-raw" / "wiki.test.raw"
    tokenizer = small.bpe()
    model = small.model(tokenizer, padding=0)
    text = "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:100])
    ids = torch.tensor([tokenizer.encode(text).tolist()])
    task = open_task("wikitext2", tokenizer, model.block_size, 100, path)
    figures = evaluate_task(task, model, tokenizer, CPU, 32)
    theirs = documented_perplexity(hugging_face_twin(model, n_head=2), ids, 48, 24)
    assert figures["perplexity"] == pytest.approx(theirs, rel=5e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_limit_keeps_the_first_samples(files: dict[str, Path], name: str) -> None:
    tokenizer = small.bpe()
    task = open_task(name, tokenizer, 48, 3, files[name])
    lines = files[name].read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(files[name].with_name("short"), "".join(lines[:3]))
    assert task.samples == 3
    assert task.groups == open_task(name, tokenizer, 48, None, files[name].with_name("short")).groups


def test_a_model_in_training_is_evaluated_without_dropout(files: dict[str, Path]) -> None:
    tokenizer = small.bpe()
    task, model = (
        open_task("lambada", tokenizer, 48, data=files["lambada"]),
        small.model(tokenizer, dropout=0.5),
    )
    expected = evaluate_task(task, model, tokenizer, CPU, 4)
    model.train()
    assert evaluate_task(task, model, tokenizer, CPU, 4) == expected
    assert model.training


def test_progress_off_a_terminal_is_a_line_now_and_then(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeroshot, "SECONDS_BETWEEN_LINES", 0.0)
    tokenizer = small.bpe()
    evaluate_task(
        open_task("lambada", tokenizer, 48, data=files["lambada"]), small.model(tokenizer), tokenizer, CPU, 4
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("lambada: 6 of 6 passages, accuracy 0")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hellaswag", "", "empty; name a file of this task"),
        ("hellaswag", "{\n", "line 1: not JSON"),
        ("lambada", "[1]\n", "line 1: not a JSON object; repair the file"),
        (
            "lambada",
            '{"text": "a b"}\n{"txt": 1}\n',
            "line 2: no field 'text', only txt; name a file of this task",
        ),
        ("lambada", '{"text": "a b "}\n', "line 1: text ends without a last word; repair the file"),
        (
            "hellaswag",
            '{"ctx": "a", "endings": ["b"], "label": 1}\n',
            "label = 1 is not the index of an ending",
        ),
        (
            "hellaswag",
            '{"ctx": "a", "endings": "b", "label": 0}\n',
            "endings = 'b' is not a list of texts",
        ),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_text(tmp_path / "data", text)
    with pytest.raises(UserError) as raised:
        open_task(name, small.bpe(), 48, data=tmp_path / "data")
    assert str(raised.value).startswith(f"{name}: {tmp_path / 'data'}")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_what_cannot_be_evaluated_says_why(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="^task helaswag: not one of hellaswag, lambada, wikitext2"):
        open_task("helaswag", small.bpe(), 48)
    with pytest.raises(UserError, match="^wikitext2: character 'T' .* is not in the vocabulary"):
        open_task("wikitext2", CharTokenizer(" \n=", end_of_text=False), 48, data=files["wikitext2"])
    with pytest.raises(
        UserError, match="^wikitext2: model.block_size = 1: sliding windows need at least 2 tokens"
    ):
        open_task("wikitext2", small.bpe(), 1, data=files["wikitext2"])
    write_text(tmp_path / "one", "a")
    with pytest.raises(UserError, match="^wikitext2: .*one: a single token"):
        open_task("wikitext2", small.bpe(), 48, data=tmp_path / "one")
    with pytest.raises(UserError, match="^lambada: .*none: no such file"):
        open_task("lambada", small.bpe(), 48, data=tmp_path / "none")
    with pytest.raises(UserError, match="^model ../mine: name a folder without"):
        file_name("lambada", "../mine")
    assert file_name("lambada", "/models/mine") == "models/mine/lambada.json"


@pytest.mark.mirror
def test_lambada_is_the_file_that_openai_tested_on(mirrored: Callable[[str], Path]) -> None:
    mirrored(Lambada.URL)
    task = open_task("lambada", ByteTokenizer(end_of_text=True), 1024)
    assert task.samples == 5153


@pytest.mark.mirror
def test_wikitext2_is_rebuilt_from_the_hubs_rows(
    mirrored: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = mirrored(Lambada.URL).parents[3] / "local" / "wikitext-2-raw" / "wiki.test.raw"
    lines = raw.read_bytes().decode().split("\n")[:-1]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    asked = []

    def from_the_hub(*arguments: Any) -> None:
        asked.append(arguments[:-1])
        parquet.write_table(pyarrow.table({"text": rows}), arguments[-1] / "part-00000.parquet")

    monkeypatch.setattr("pipeline.corpus.hub_datasets.write_documents", from_the_hub)
    for _ in range(2):  # the second time from the disk
        path = WikiText2.download(tmp_path)
        assert path.read_bytes() == raw.read_bytes()
    (where,) = asked
    assert where == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", WikiText2.REVISION, "text")
    rows[-1] = "changed"
    path.unlink()
    with pytest.raises(
        UserError, match="sha256 of the text is [0-9a-f]{64}, expected 173c87a5.*; .* not kept"
    ):
        WikiText2.download(tmp_path)
    assert not path.exists()


def test_without_a_hub_wikitext2_says_where_its_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> None:
        raise UserError("cannot reach the hub; try again with network")

    monkeypatch.setattr("pipeline.corpus.hub_datasets.write_documents", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^wikitext2: cannot reach .*, or put .*wiki.test.raw at /.*test.raw$"
    ):
        open_task("wikitext2", small.bpe(), 48)


def test_the_stage(tiny_project: Path, files: dict[str, Path], stage: Stage) -> None:
    tokenizer = small.bpe()
    small.save_model(tiny_project / "results" / "model", tokenizer)
    ended = stage("eval_zeroshot", "lambada", "--file", str(files["lambada"]), "--limit", "4")
    assert ended.status == 0
    assert ended.out.startswith("results/zeroshot/results/model/lambada-trial.json: accuracy ")
    assert ended.out.endswith(" on 4 samples\n")
    task = open_task("lambada", tokenizer, small.BLOCK_SIZE, 4, files["lambada"])
    expected = evaluate_task(task, small.model(tokenizer), tokenizer, CPU, 16)
    found = read_checked_json(Path("results/zeroshot/results/model/lambada-trial.json"), remedy="")
    weights = sha256_file(Path("results/model/model.safetensors"))
    assert found == {"task": "lambada", "model": "results/model", "weights": weights, "samples": 4} | {
        name: pytest.approx(figure, rel=1e-5) for name, figure in expected.items()
    }
    ended = stage("eval_zeroshot", "wikitext2", "--file", str(files["wikitext2"]), "--out", "own.json")
    assert ended.status == 0 and json.loads(Path("own.json").read_text())["samples"] == 33
    ended = stage("eval_zeroshot", "lambda", "--file", str(files["lambada"]))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(
        "error: task lambda: not one of hellaswag, lambada, wikitext2; did you mean lambada?"
    )
