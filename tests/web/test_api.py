"""OpenAI's own client talks to the server; what is wrong with a request gets an error in OpenAI's form."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
import torch

from pipeline.evaluate.lens import as_json, lens
from pipeline.model.load import load_model
from pipeline.serve.batch import Batch, Prompt
from pipeline.serve.drawing import Choice
from tests import zeroshot
from tests.family import RECURRENT
from tests.web.serving import serving, until

PROMPT = "The old ship sails over the"
TOKENIZER = zeroshot.bpe()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A plain model, and one with a loop."""
    folder = tmp_path_factory.mktemp("models")
    zeroshot.save_model(folder / "plain", TOKENIZER)
    zeroshot.save_model(folder / "loop", TOKENIZER, **RECURRENT)
    return str(folder / "plain"), str(folder / "loop")


@pytest.fixture(scope="module")
def address(models: tuple[str, str]) -> Iterator[str]:
    with serving(*models) as address:
        yield address


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def post(address: str, path: str = "/v1/completions", **fields: Any) -> requests.Response:
    return requests.post(address + path, json={"prompt": PROMPT, **fields}, timeout=10)


def alone(folder: str, seed: int, tokens: int, number: int = 0, depth: int | None = None) -> str:
    """The text without a server."""
    batch = Batch(load_model(folder), TOKENIZER.vocab_size, depth, torch.device("cpu"))
    prompt = Prompt(TOKENIZER.encode(PROMPT).tolist(), [Choice(seed=seed, number=number)])
    steps = [batch.step([] if step else [prompt]) for step in range(tokens)]
    ids = [token.id for ((_, token),) in steps]
    return TOKENIZER.decode(ids[: ids.index(TOKENIZER.end_of_text)] if TOKENIZER.end_of_text in ids else ids)


def test_models(client: openai.OpenAI, models: tuple[str, str]) -> None:
    assert [model.id for model in client.models.list()] == list(models)
    assert client.models.retrieve(models[1]).id == models[1]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt5")


def test_a_seed_decides_the_text_whoever_else_asks(client: openai.OpenAI, models: tuple[str, str]) -> None:
    texts: dict[int, str] = {}

    def ask(seed: int) -> None:
        answer = client.completions.create(model=models[0], prompt=PROMPT, seed=seed, max_tokens=20 + seed)
        texts[seed] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {seed: alone(models[0], seed, 20 + seed) for seed in range(8)}


def test_several_prompts_and_choices(client: openai.OpenAI, models: tuple[str, str]) -> None:
    ids = TOKENIZER.encode(PROMPT).tolist()
    answer = client.completions.create(
        model=models[0], prompt=[ids, ids[:2]], n=2, seed=3, max_tokens=6, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices[:2]] == [
        PROMPT + alone(models[0], 3, 6, number) for number in range(2)
    ]
    assert all(choice.text.startswith(TOKENIZER.decode(ids[:2])) for choice in answer.choices[2:])
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids) + 2
    assert client.completions.create(model=models[0], prompt=[PROMPT], max_tokens=1).choices[0].index == 0


def test_a_stream_brings_the_same_text_token_by_token(client: openai.OpenAI, models: tuple[str, str]) -> None:
    settings: dict[str, Any] = {"model": models[0], "prompt": PROMPT, "seed": 5, "max_tokens": 30, "n": 2}
    whole = client.completions.create(**settings)
    *events, usage = client.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for choice in whole.choices:
        own = [part for event in events for part in event.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        assert len(own) > 10
    assert usage.usage == whole.usage


def test_logprobs(client: openai.OpenAI, models: tuple[str, str]) -> None:
    answer = client.completions.create(
        model=models[0], prompt=PROMPT, max_tokens=3, seed=1, echo=True, logprobs=2
    )
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs and told.tokens and told.top_logprobs and told.text_offset
    ids = told.model_extra["token_ids"] if told.model_extra else []
    with torch.no_grad():
        logits = load_model(models[0])(torch.tensor([ids]))[0, :, : TOKENIZER.vocab_size].log_softmax(-1)
    assert told.token_logprobs[0] is None
    expected = [logits[at, id].item() for at, id in enumerate(ids[1:])]
    assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    best = [max(top.values()) for top in told.top_logprobs[1:] if top is not None]
    assert best == pytest.approx(logits[:-1].amax(-1).tolist(), abs=1e-4)
    for name, nats, top in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[1:]:
        assert top is not None and top[name] == nats  # the token itself, and the two likeliest ones
        assert len(top) == 2 + (nats < sorted(top.values())[-2])
    text = answer.choices[0].text
    for name, start in zip(told.tokens, told.text_offset, strict=True):
        assert name.startswith("bytes:") or text[start:].startswith(name)


def test_a_prompt_is_scored_without_writing(address: str) -> None:
    answer = post(address, max_tokens=0, echo=True, logprobs=0).json()
    assert answer["choices"][0]["text"] == PROMPT
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == answer["usage"]["prompt_tokens"]


def test_null_is_the_default(address: str) -> None:
    names = "model max_tokens temperature top_p n seed stop stream stream_options logprobs echo best_of"
    nulls: dict[str, Any] = dict.fromkeys(
        [*names.split(), "user", "logit_bias", "suffix", "presence_penalty"]
    )
    assert len(post(address, **nulls).json()["choices"]) == 1
    neutral: dict[str, Any] = {"logit_bias": {}, "suffix": "", "frequency_penalty": 0.0, "best_of": 1}
    assert len(post(address, **neutral, max_tokens=1).json()["choices"]) == 1


def test_no_character_ends_a_line_of_a_stream(address: str) -> None:
    answer = post(address, prompt="a\u2028b\x85c", max_tokens=0, echo=True, stream=True)
    assert answer.content.isascii()
    event = json.loads(answer.text.splitlines()[0].removeprefix("data: "))
    assert event["choices"][0]["text"] == "a\u2028b\x85c"


def test_a_client_that_leaves_before_its_body_is_no_failure(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    before = left(address)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    until(lambda: left(address) > before)
    assert capfd.readouterr().err == ""


def left(address: str) -> float:
    found = re.search(r'status="499"} (\d+)', requests.get(f"{address}/metrics", timeout=10).text)
    return float(found[1]) if found else 0


def test_stop(client: openai.OpenAI, models: tuple[str, str]) -> None:
    text = alone(models[0], 2, 30)
    for stop in (text[5], text[4:9], [text[9:12], text[6:8]]):
        answer = client.completions.create(model=models[0], prompt=PROMPT, seed=2, max_tokens=30, stop=stop)
        first = min(text.find(one) for one in ([stop] if isinstance(stop, str) else stop))
        assert answer.choices[0].text == text[:first]
        assert answer.choices[0].finish_reason == "stop"


def test_temperature_zero_and_depth(client: openai.OpenAI, models: tuple[str, str]) -> None:
    def text(**extra: Any) -> str:
        settings: Any = {"model": models[1], "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        return client.completions.create(**settings, extra_body=extra).choices[0].text

    assert text(depth=3) == text() == text(top_k=1)
    assert text(depth=1) != text()


def test_the_lens_is_that_of_the_report(address: str, models: tuple[str, str]) -> None:
    ids = TOKENIZER.encode(PROMPT).tolist()
    answer = requests.post(f"{address}/lens", json={"model": models[1], "ids": ids}, timeout=10).json()
    found = lens(load_model(models[1]), torch.tensor(ids), TOKENIZER.vocab_size, last=2)
    expected = as_json(found, TOKENIZER)
    assert answer == json.loads(json.dumps(expected))


def test_health_and_metrics(address: str) -> None:
    assert requests.get(f"{address}/health", timeout=10).json() == {"status": "ok"}
    before = metric(address, "generated_tokens_total")
    written = post(address, max_tokens=5, seed=1).json()["usage"]["completion_tokens"]
    assert metric(address, "generated_tokens_total") - before == written
    assert metric(address, 'requests_total{status="200"}') >= 2


def metric(address: str, name: str) -> float:
    text = requests.get(f"{address}/metrics", timeout=10).text
    return float(re.search(rf"^gpt_pipeline_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt5"}, 404, "model", "gpt5: not served here"),
        ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 10**9}, 400, "max_tokens", "less than or equal to 4096"),
        ({"max_tokens": 10**30}, 400, "max_tokens", "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens", "max_tokens"),
        ({"max_tokens": "many"}, 400, "max_tokens", "max_tokens"),
        ({"n": 0}, 400, "n", "n = 0"),
        ({"n": 5}, 400, "n", "at most 4 at a time"),
        ({"prompt": ["a"] * 17}, 400, "prompt", "only 16 prompts may wait"),
        ({"suffix": "a"}, 400, "suffix", "suffix"),
        ({"prompt": None}, 400, "prompt", "prompt is missing"),
        ({"prompt": ["a"] * 129}, 400, "prompt", "128 texts at a time"),
        ({"logprobs": 21}, 400, "logprobs", "less than or equal to 20"),
        ({"temperature": -0.1}, 400, "temperature", "temperature"),
        ({"top_p": 0}, 400, "top_p", "top_p"),
        ({"top_k": 0}, 400, "top_k", "top_k"),
        ({"seed": -1}, 400, "seed", "seed"),
        ({"seed": 2**63}, 400, "seed", "64 bits"),
        ({"depth": 1}, 400, "depth", "has no loop"),
        ({"stop": [""]}, 400, "stop", "1 to 1000 characters"),
        ({"stop": list("abcde")}, 400, "stop", "at most 4"),
        ({"temprature": 1, "max_tokens": -1}, 400, "temprature", "did you mean temperature?"),
        ({"best_of": 3}, 400, "best_of", "best_of"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias", "logit_bias"),
        ({"prompt": ""}, 400, "prompt", "prompt is empty"),
        ({"prompt": []}, 400, "prompt", "give a text"),
        ({"prompt": {"a": 1}}, 400, "prompt", "give a text"),
        ({"prompt": [1, "a"]}, 400, "prompt", "give a text"),
        ({"prompt": [[1], []]}, 400, "prompt", "give a text"),
        ({"prompt": [-1]}, 400, "prompt", "id -1 is not in the vocabulary of 290"),
        ({"prompt": [10**30]}, 400, "prompt", "not in the vocabulary"),
        ({"prompt": [1] * 49}, 400, "prompt", "has 49 tokens, but .* reads at most 48"),
        ({"prompt": "\ud800"}, 400, "prompt", "not UTF-8"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_wrong_field(address: str, fields: dict[str, Any], status: int, param: str, message: str) -> None:
    answer = post(address, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert re.search(message, error["message"])
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"", {}, 400, "not JSON"),
        (b"\xff\xfe", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "nested too deep"),
        (b'{"temperature": NaN}', {}, 400, "NaN is no number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400, "not JSON"),
        (b"[]", {}, 400, "a list, not a JSON object"),
        (b"null", {}, 400, "not a JSON object"),
        (rb'{"\ud800": 1}', {}, 400, "not UTF-8"),
        (b"{}", {}, 400, "prompt is missing"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "text/plain"),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (b" " * (1 << 20) + b"{}", {}, 413, "over 1,048,576 bytes"),
        (b"{}", {"Host": "evil.example"}, 421, "evil.example"),
        (b"{}", {"Host": "127.0.0.1.evil.example:80"}, 421, "not this server"),
        (b"{}", {"Host": ""}, 421, "not this server"),
        (b"{}", {"Origin": "https://evil.example"}, 403, "pages of other sites"),
        (b"{}", {"Origin": "null"}, 403, "pages of other sites"),
        (b"{}", {"Origin": "http://127.0.0.1:1"}, 403, "pages of other sites"),
    ],
)
def test_a_wrong_body_or_header(
    address: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    whole = {"Content-Type": "application/json", **headers}
    answer = requests.post(f"{address}/v1/completions", data=body, headers=whole, timeout=10)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_wrong_paths_and_methods(address: str) -> None:
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("GET", "/v1/chat/completions", 404),
        ("GET", "/../params.yaml", 404),
        ("DELETE", "/", 405),
    ):
        answer = requests.request(method, address + path, timeout=10)
        assert (answer.status_code, set(answer.json())) == (status, {"error"})
    look = requests.post(f"{address}/lens", json={"ids": [1]}, timeout=10)
    assert (look.status_code, look.json()["error"]["param"]) == (400, "ids")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "192.168.0.7"])
def test_addresses_and_localhost_are_hosts(address: str, name: str) -> None:
    host = f"{name}:{address.rpartition(':')[2]}"
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert requests.get(f"{address}/health", headers=headers, timeout=10).ok


def test_a_client_that_leaves_frees_its_place_and_a_full_queue_says_so(models: tuple[str, str]) -> None:
    with serving(models[0], streams=2, waiting=3) as address:
        body = json.dumps({"prompt": PROMPT, "max_tokens": 4096, "stream": True, "n": 2, "logit_bias": None})
        request = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        port = int(address.rpartition(":")[2])
        leaving = []
        for _ in range(4):  # one is written, three wait
            leaving.append(socket.create_connection(("127.0.0.1", port)))
            leaving[-1].sendall(request)
            until(
                lambda: (
                    metric(address, "streams_running") + metric(address, "prompts_waiting") >= len(leaving)
                )
            )
        until(lambda: metric(address, "prompts_waiting") == 3)
        full = post(address)
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        assert full.json()["error"]["code"] == "queue_full"
        for connection in leaving:
            connection.close()
        until(lambda: metric(address, "streams_running") + metric(address, "prompts_waiting") == 0)
        assert metric(address, "cancelled_total") == 8
        assert post(address, max_tokens=2).ok
