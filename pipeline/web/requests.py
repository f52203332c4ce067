"""What the server accepts: JSON bodies, checked before any work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError, field_validator
from starlette.requests import Request

from pipeline.config.errors import UserError
from pipeline.config.validation import Section, in_order, suggest, validate
from pipeline.web.errors import Refusal, bad_request
from pipeline.web.models import LoadedModel, ServedModel

LARGEST_BODY = 1 << 20  # bytes
SECONDS_FOR_BODY = 20
MAX_TOKENS = 4096
MAX_ALTERNATIVES = 20
MAX_CHOICES = 128  # of all prompts of a request together

Ids = list[int]
Form = TypeVar("Form", bound=Section)


class StreamOptions(Section):
    include_usage: bool = False


class Completion(Section):
    """A request for OpenAI's /v1/completions, with `top_k` and `depth` besides."""

    model: str | None = None
    prompt: Any  # text, ids, or a list of either
    max_tokens: int = Field(16, ge=0, le=MAX_TOKENS)
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    echo: bool = False
    user: str | None = None  # for logs that this server does not keep
    # What OpenAI has besides is refused, unless it says what is the case anyway.
    best_of: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    suffix: Literal[""] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 4 or not all(0 < len(stop) <= 1000 for stop in stops):
            raise ValueError("give at most 4 texts of 1 to 1000 characters")
        return stops

    @property
    def prompts(self) -> Sequence[str | Ids]:
        """Each of the prompts. Raises Refusal for anything else."""
        value = self.prompt
        if isinstance(value, str) or _is_ids(value):
            return [value]
        if isinstance(value, list) and value and all(isinstance(one, str) or _is_ids(one) for one in value):
            return value
        raise bad_request("prompt: give a text, a list of token ids, or a list of either", "prompt")


class Look(Section):
    """A request for the depth lens: how the last of these tokens came about."""

    model: str | None = None
    ids: list[int] = Field(min_length=2)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


async def read_form(request: Request, form: type[Form]) -> Form:
    """The JSON body of a request. Raises Refusal if it is something else, too large or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        said = kind or "none"
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {said}; send JSON as application/json"
        )
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            body = await _read_body(request)
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time") from None
    try:
        values = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise bad_request(f"the body is not JSON: {reason}") from None
    if not isinstance(values, dict):
        raise bad_request(f"the body is a {type(values).__name__}, not a JSON object")
    try:
        values = {name: value for name, value in values.items() if value is not None}  # null: the default
        "".join(values).encode()
        return form.model_validate(values)
    except UnicodeEncodeError:
        raise bad_request("the name of a field is not UTF-8; correct it") from None
    except ValidationError as error:
        param = str(in_order(error)[0]["loc"][0])
        try:
            validate(form, values, "request")
        except UserError as explained:
            raise bad_request(str(explained).removeprefix("request: "), param) from None
        raise


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is over {LARGEST_BODY:,} bytes; shorten it",
            )
    return bytes(body)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def model_named(name: str | None, models: dict[str, ServedModel]) -> LoadedModel:
    """The model that a request names, or the first one. Raises Refusal if there is no such model."""
    if name is None:
        return next(iter(models.values())).current
    if name not in models:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"model {name}: not served here{suggest(name, list(models))} (there are {', '.join(models)})",
            "model",
            "model_not_found",
        )
    return models[name].current


def prompt_ids(prompt: str | Ids, model: LoadedModel) -> Ids:
    """The ids of a prompt. Raises Refusal for what the model cannot read."""
    size, longest = model.tokenizer.vocab_size, model.gpt.block_size
    if isinstance(prompt, str):
        try:
            ids = model.tokenizer.encode_prompt(prompt).tolist()
        except UserError as error:
            raise bad_request(f"prompt: {error}", "prompt") from None
    else:
        ids = prompt
    wrong = next((id for id in ids if not 0 <= id < size), None)
    if wrong is not None:
        raise bad_request(f"prompt: id {wrong:.20g} is not in the vocabulary of {size:,}", "prompt")
    if not ids:
        raise bad_request("prompt is empty; give at least one character, such as a line end", "prompt")
    if len(ids) > longest:
        raise bad_request(
            f"prompt has {len(ids):,} tokens, but {model.name} reads at most {longest:,}; shorten it",
            "prompt",
            "context_length_exceeded",
        )
    return ids


def check_depth(depth: int | None, model: LoadedModel) -> None:
    """Raises Refusal for a depth that the model does not have."""
    if depth is None:
        return
    if not model.loops:
        raise bad_request(f"depth = {depth}: {model.name} has no loop; leave it out", "depth")
    if depth > model.deepest:
        raise bad_request(
            f"depth = {depth}: {model.name} was trained for {model.gpt.depth} steps; take at most "
            f"{model.deepest}",
            "depth",
        )
