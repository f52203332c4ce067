"""`make bench`: compares this project with other programs, and its model variants with each other."""

from __future__ import annotations

from pipeline.config.command_line import run_one_of

HELP = "Run a benchmark. Results are written to results/."
BENCHMARKS = {
    "speed": ("the table of speed against nanoGPT, its fork and an earlier version", "bench.speed"),
    "gpu": ("the same on one GPU, in nine minutes", "bench.gpu"),
    "fork": ("the model family against nanoGPT's fork: make bench WHAT=fork CLONE=...", "bench.fork"),
    "interop": ("logits, losses, memory and speed against transformers", "bench.interop"),
    "checkpoint": ("what saving, resuming and opening a large corpus cost", "bench.checkpoint"),
    "scale": ("what larger trainings need: tokenizing, reading, several processes", "bench.scale"),
    "report": ("how soon the report is built and opens, and its accessibility", "bench.report"),
    "serve": ("the server: streams at a time, the first token, bad requests", "bench.serve"),
    "ablation": (
        "take ingredients out of the active recipe: loss and time over several seeds",
        "bench.ablation",
    ),
    "pictures": ("make the pictures in docs/images/ again", "bench.pictures"),
    "docs": ("put the tables in results/ into docs/benchmarks.md", "bench.docs:write_docs"),
    "variants": ("train every variant of the model and compare their depth curves", "bench.compare_variants"),
}


def main() -> None:
    """Run the benchmark that the first argument names."""
    run_one_of(BENCHMARKS, HELP, "python -m bench")


if __name__ == "__main__":
    main()
