"""How long a training takes and how much disk its tokens need: the plan in docs/scaling.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.report.tables import markdown_table

SCALING_FILE = Path("docs/scaling.md")
TOKEN_BYTES = 2  # uint16, for vocabularies of up to 65,536 tokens
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Rates:
    """What a plan is computed from."""

    tokens_per_second: float  # that one GPU trains on
    tokenizing: float  # CPU seconds per million tokens


@dataclass(frozen=True)
class Plan:
    """What it takes to train on this many tokens once, with so many GPUs."""

    tokens: int
    gpus: int
    rates: Rates

    @property
    def gpu_hours(self) -> float:
        """The GPUs' hours of training, all together, if they lose nothing by waiting for each other."""
        return self.tokens / self.rates.tokens_per_second / SECONDS_PER_HOUR

    @property
    def hours(self) -> float:
        """Hours of training."""
        return self.gpu_hours / self.gpus

    @property
    def cpu_hours(self) -> float:
        """CPU hours of tokenizing; divide by the cores."""
        return self.tokens / 1e6 * self.rates.tokenizing / SECONDS_PER_HOUR

    @property
    def shard_bytes(self) -> int:
        """Bytes of the shards on disk."""
        return self.tokens * TOKEN_BYTES


# nanoGPT's README: GPT-2 (124M) in about 4 days on 8 A100 of 40 GB; its configuration has 600,000 steps of
# 491,520 tokens. Tokenizing was measured here: 40 MB of English prose on two busy cores, two runs.
NANOGPT_A100 = 600_000 * 491_520 / (8 * 4 * 24 * SECONDS_PER_HOUR)
RATES = Rates(tokens_per_second=NANOGPT_A100, tokenizing=0.33)

MACHINES = {1: "1 GPU", 8: "1 node, 8 GPUs", 32: "4 nodes, 8 GPUs each"}
STEPS = ((10**9, 1), (10**10, 8), (10**11, 32))  # tokens, GPUs


def scaling_plan(rates: Rates = RATES) -> str:
    """The plan for 1, 10 and 100 billion tokens, as a Markdown table."""
    header = ("tokens", "machines", "GPU hours", "hours", "CPU hours of tokenizing", "shards")
    rows = [
        (
            f"{tokens // 10**9}B",
            MACHINES[gpus],
            f"{plan.gpu_hours:.1f}",
            f"{plan.hours:.1f}",
            f"{plan.cpu_hours:.1f}",
            f"{plan.shard_bytes // 10**9} GB",
        )
        for tokens, gpus in STEPS
        for plan in [Plan(tokens, gpus, rates)]
    ]
    return markdown_table([header, *rows], "<<>>>>")
