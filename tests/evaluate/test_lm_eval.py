"""In the real lm-evaluation-harness our models give the figures of our own tasks, and of transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.config.errors import UserError
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.load import load_model
from pipeline.storage.checksums import write_manifest
from pipeline.tokens.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from tests import zeroshot
from tests.conftest import Ended
from tests.model.test_gpt import hugging_face_twin
from tests.train.runs import flip_a_bit

lm_eval = pytest.importorskip("lm_eval")
Stage = Callable[..., Ended]

FIGURES = {  # ours, and the harness's
    "hellaswag": {"accuracy": "acc,none", "accuracy_norm": "acc_norm,none"},
    "lambada": {"accuracy": "acc,none", "perplexity": "perplexity,none"},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the harness's own definitions of two tasks, on our small files."""
    folder = tmp_path_factory.mktemp("tasks")
    definitions = Path(lm_eval.__file__).parent / "tasks"
    for name, definition, split, rows in (
        ("hellaswag", "hellaswag/hellaswag.yaml", "validation", zeroshot.HELLASWAG),
        ("lambada", "lambada/lambada_openai.yaml", "test", zeroshot.LAMBADA),
    ):
        data = zeroshot.write_rows(folder / f"{name}.jsonl", [row | {"label": 0} | row for row in rows])
        task = {
            "include": str(definitions / definition),
            "task": f"small_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data)}, "cache_dir": str(folder / "cache")},
            "training_split": None,
        }
        with (folder / f"{name}.yaml").open("w") as file:
            YAML(typ="safe").dump(task, file)
    return folder


def harness(model: Any, local_tasks: Path, **settings: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"small_{name}" for name in FIGURES],
        task_manager=TaskManager(include_path=str(local_tasks), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )["results"]
    return results


def ours_registered(folder: Path, batch_size: int = 3) -> Any:
    from pipeline.evaluate.lm_eval import PipelineLM

    return PipelineLM(str(folder), device="cpu", batch_size=batch_size)


def hugging_faces(folder: Path, tokenizer: BPETokenizer) -> Any:
    """transformers' GPT-2 with the same weights, a sequence at a time, behind the harness's own template."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model: Any = hugging_face_twin(load_model(folder), n_head=2)

    class HuggingFaces(TemplateLM):
        eot_token_id = tokenizer.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids: list[int] = tokenizer.encode(string).tolist()
            return ids

        @torch.no_grad()
        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            results = []
            for _text, context, continuation in requests:
                ids = torch.tensor((context + continuation)[-zeroshot.BLOCK_SIZE - 1 :])
                chances = model(ids[None, :-1]).logits[0, -len(continuation) :].log_softmax(-1)
                targets = ids[-len(continuation) :]
                total = chances.gather(1, targets[:, None]).sum()
                results.append((total.item(), bool((chances.argmax(-1) == targets).all())))
            return results

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            totals = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    self.tok_encode(text), self.eot_token_id, zeroshot.BLOCK_SIZE, 1
                )
                pairs = [("", *make_disjoint_window(window)) for window in windows]
                totals.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            texts = []
            for context, settings in (request.args for request in requests):
                ids = torch.tensor(
                    [self.tok_encode(context)[-zeroshot.BLOCK_SIZE + settings["max_gen_toks"] :]]
                )
                written = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=settings["max_gen_toks"],
                    do_sample=False,
                    eos_token_id=tokenizer.end_of_text,
                    pad_token_id=tokenizer.end_of_text,
                )
                text = tokenizer.decode(written[0, ids.shape[1] :].tolist())
                for stop in settings["until"]:
                    text = text.split(stop)[0]
                texts.append(text)
            return texts

    return HuggingFaces()


@pytest.mark.parametrize("tokenizer", [zeroshot.bpe(), ByteTokenizer(end_of_text=False)], ids=["bpe", "byte"])
def test_our_tasks_and_the_harness_agree(tmp_path: Path, local_tasks: Path, tokenizer: Tokenizer) -> None:
    folder = zeroshot.save_model(tmp_path / "model", tokenizer)
    settings = {"model_args": {"pretrained": str(folder)}, "device": "cpu", "batch_size": 3}
    import pipeline.evaluate.lm_eval  # noqa: F401

    theirs = harness("gpt-pipeline", local_tasks, **settings)
    model = zeroshot.model(tokenizer)
    for name, figures in FIGURES.items():
        task = open_task(name, tokenizer, model.block_size, data=local_tasks / f"{name}.jsonl")
        ours = evaluate_task(task, model, tokenizer, torch.device("cpu"), 2)
        for own, its in figures.items():
            assert ours[own] == pytest.approx(theirs[f"small_{name}"][its], rel=1e-5)


def test_transformers_own_model_agrees(tmp_path: Path, local_tasks: Path) -> None:
    tokenizer = zeroshot.bpe()
    folder = zeroshot.save_model(tmp_path / "model", tokenizer, padding=0)
    ours = harness(ours_registered(folder), local_tasks)
    theirs = harness(hugging_faces(folder, tokenizer), local_tasks)
    for name, figures in FIGURES.items():
        for its in figures.values():
            assert ours[f"small_{name}"][its] == pytest.approx(theirs[f"small_{name}"][its], rel=1e-4)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_rolling_and_writing_agree_with_transformers(tmp_path: Path) -> None:
    tokenizer = zeroshot.bpe()
    folder = zeroshot.save_model(tmp_path / "model", tokenizer, padding=0)
    ours, theirs = ours_registered(folder), hugging_faces(folder, tokenizer)
    texts = requests("loglikelihood_rolling", (zeroshot.WIKITEXT,), ("The sea",), ("sea",))
    expected = theirs.loglikelihood_rolling(texts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)
    prompts = requests(
        "generate_until",
        ("The old ship", {"until": ["e", "zz"], "max_gen_toks": 20}),
        (zeroshot.WIKITEXT, {"until": [], "max_gen_toks": 20, "do_sample": False}),
    )
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


def test_what_needs_an_end_of_text_token_says_so(tmp_path: Path) -> None:
    model = ours_registered(zeroshot.save_model(tmp_path / "model", ByteTokenizer(end_of_text=False)))
    with pytest.raises(UserError, match="an empty context needs an end-of-text token"):
        model.loglikelihood(requests("loglikelihood", ("", "sea")))
    with pytest.raises(UserError, match="an empty context needs an end-of-text token"):
        model.generate_until(requests("generate_until", ("", {})))
    (rolling,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", ("sea",)))
    ((given, _),) = model.loglikelihood(requests("loglikelihood", ("s", "ea")))
    assert rolling == pytest.approx(given)
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0.0]


def test_sampled_text_and_unknown_settings(tmp_path: Path) -> None:
    model = ours_registered(zeroshot.save_model(tmp_path / "model", zeroshot.bpe()))
    drawn = {"temperature": 1.0, "top_k": 5, "max_gen_toks": 30}
    torch.manual_seed(0)
    first, second = model.generate_until(requests("generate_until", ("The", drawn), ("The", drawn)))
    assert first != second
    with pytest.raises(UserError, match="generation setting num_beams: not one of do_sample, max_gen_toks"):
        model.generate_until(requests("generate_until", ("The", {"num_beams": 2})))


def test_the_stage(tiny_project: Path, local_tasks: Path, stage: Stage) -> None:
    folder = zeroshot.save_model(tiny_project / "results" / "model", zeroshot.bpe())
    arguments = ("--tasks-folder", str(local_tasks), "--out", "figures.json")
    ended = stage("lm_eval", "small_lambada", "--limit", "4", *arguments)
    assert ended.status == 0
    assert "|small_lambada|" in ended.out
    figures = json.loads(Path("figures.json").read_text())["small_lambada"]
    task = open_task("lambada", zeroshot.bpe(), zeroshot.BLOCK_SIZE, 4, local_tasks / "lambada.jsonl")
    ours = evaluate_task(task, zeroshot.model(zeroshot.bpe()), zeroshot.bpe(), torch.device("cpu"), 2)
    assert figures["perplexity,none"] == pytest.approx(ours["perplexity"], rel=1e-5)
    assert folder.exists()
    write_manifest(folder)
    flip_a_bit(folder / "model.safetensors")
    ended = stage("lm_eval", "small_lambada", *arguments)
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("error: results/model/model.safetensors: not what was saved")
    ended = stage("lm_eval", "nosuchtask", *arguments)
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("error: task nosuchtask: no such task; look in ")


def test_without_the_extra(tiny_project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ended = stage("lm_eval", "small_lambada")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "needs the extra lm-eval" in ended.err and "run `make install EXTRAS=lm-eval`" in ended.err
