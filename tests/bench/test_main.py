"""`python -m bench` lists the benchmarks, and each of them explains itself."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from bench.__main__ import BENCHMARKS, main
from tests.conftest import Ended


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_without_arguments_it_lists_the_benchmarks(bench: Callable[..., Ended]) -> None:
    ended = bench()
    assert ended.status == 0
    assert all(f"  {name} " in ended.out for name in BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_itself(bench: Callable[..., Ended], name: str) -> None:
    ended = bench(name, "--help")
    assert ended.status == 0 and ended.out.startswith(f"Usage: python -m bench {name} ")
