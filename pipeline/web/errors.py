"""What the server refuses, as JSON in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from pipeline.config.errors import one_line


class Refusal(Exception):
    """An answer other than 200. `param` is the field of the request that is wrong, if it is one."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, dict(self.headers or {}))

    def content(self) -> dict[str, dict[str, str | None]]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        message = one_line(str(self))
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message, param, code)
