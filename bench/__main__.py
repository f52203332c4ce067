"""`make bench`: compares this project with other programs, and its model variants with each other."""

from __future__ import annotations

from pipeline.config.command_line import run_one_of

HELP = "Run a benchmark. Results are written to results/."
BENCHMARKS = {
    "nanogpt": ("training and sampling against nanoGPT: make bench WHAT=nanogpt CLONE=...", "bench.nanogpt"),
    "fork": ("the model family against nanoGPT's fork: make bench WHAT=fork CLONE=...", "bench.fork"),
    "interop": ("logits, losses, memory and speed against transformers", "bench.interop"),
    "checkpoint": ("what saving, resuming and opening a large corpus cost", "bench.checkpoint"),
    "ablation": (
        "take ingredients out of the active recipe: loss and time over several seeds",
        "bench.ablation",
    ),
    "variants": ("train every variant of the model and compare their depth curves", "bench.compare_variants"),
}


def main() -> None:
    """Run the benchmark that the first argument names."""
    run_one_of(BENCHMARKS, HELP, "python -m bench")


if __name__ == "__main__":
    main()
