"""Counters for Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

PREFIX = "gpt_pipeline_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTERS = {
    "requests_total": "Requests by status.",
    "refused_total": "Requests that found the queue full.",
    "cancelled_total": "Sequences whose client left.",
    "prompt_tokens_total": "Tokens of prompts that were read.",
    "generated_tokens_total": "Tokens that were written.",
}
SUMMARIES = {"first_token_seconds": "From a request to its first token."}


class Metrics:
    """Numbers that only grow, and gauges that are read when they are asked for."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {
            **{name: 0 for name in COUNTERS if name != "requests_total"},
            **{f"{name}_{part}": 0 for name in SUMMARIES for part in ("sum", "count")},
        }
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        self._gauges[name] = (meaning, read)

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        key = name + label
        self._values[key] = self._values.get(key, 0) + amount

    def observe(self, name: str, value: float) -> None:
        self.add(f"{name}_sum", value)
        self.add(f"{name}_count")

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for kind, names in (("counter", COUNTERS), ("summary", SUMMARIES)):
            for name, meaning in names.items():
                yield f"# HELP {PREFIX}{name} {meaning}"
                yield f"# TYPE {PREFIX}{name} {kind}"
                for key, value in self._values.items():
                    if key.startswith(name):
                        yield f"{PREFIX}{key} {value:.10g}"
        for name, (meaning, read) in self._gauges.items():
            yield f"# HELP {PREFIX}{name} {meaning}"
            yield f"# TYPE {PREFIX}{name} gauge"
            yield f"{PREFIX}{name} {read():.10g}"
