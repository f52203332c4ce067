"""Who may ask: pages of other sites may not, even if their name has been made to lead here."""

from __future__ import annotations

import ipaddress
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.web.errors import Refusal
from pipeline.web.metrics import Metrics

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
}


class Guard:
    """Refuses requests with a Host header from elsewhere, and those that another site's page sends.

    A page of an attacker's site can have its name point to 127.0.0.1 (DNS rebinding). Its requests then name
    that site as their host, so only `localhost`, addresses and the name that the user gave are hosts. Counts
    the answers by status, too.
    """

    def __init__(self, app: ASGIApp, host: str, metrics: Metrics) -> None:
        self._app = app
        self._hosts = {"localhost", host.lower()}
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.add("requests_total", label=f'{{status="{message["status"]}"}}')
                message["headers"] += [
                    (name.lower().encode(), value.encode()) for name, value in HEADERS.items()
                ]
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except Refusal as refusal:
            await refusal.response()(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_here(host):
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"Host {host[:100]}: not this server; use localhost, or its address",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refusal(HTTPStatus.FORBIDDEN, f"Origin {origin[:100]}: pages of other sites may not ask")

    def _is_here(self, host: str) -> bool:
        name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host.lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True
