"""What a model and its training need, before anything is built: parameters, FLOPs, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import presets
from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params, load_params
from pipeline.config.paths import raw_folder, runs_folder, tokens_folder
from pipeline.model.size import ModelSize, model_size
from pipeline.report.tables import plain_table
from pipeline.runtime.device import use_device
from pipeline.runtime.memory import memory_of
from pipeline.storage.machine import binary, disk
from pipeline.tokens.shards import load_manifest
from pipeline.train.sizing import expected_config, run_disk, training_memory

Rows = Iterator[tuple[str, str, str]]


def main(
    preset: Annotated[
        str | None, typer.Option(help="A preset; by default what params.yaml says.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print what a model and its training need: parameters by part, FLOPs, memory, disk.

    Parameters, weights, gradients, optimizer and checkpoints are exact; what is marked with ~ is rough.
    """
    params = (
        presets.composed(preset).with_overrides(overrides or []) if preset else load_params(overrides or [])
    )
    params.check_sections()
    config = expected_config(params)
    if config is None:
        name = params.tokenizer.name
        print(f"note: not counted is the vocabulary of {name}, which `dvc repro tokenize` makes known\n")
        config = GPTConfig(**params.model.model_dump(), vocab_size=1)
    size = model_size(config)
    sections = {
        ("parameters", "", "share"): _parameters(size),
        ("compute", "FLOPs", "share"): _compute(params, config, size),
        ("memory for training", "", ""): _memory(params, config, size),
        ("disk", "", ""): _disk(params, size),
    }
    print("\n\n".join(plain_table([header, *rows], "<>>") for header, rows in sections.items()))


def _parameters(size: ModelSize) -> Rows:
    for part, number in size.parts.items():
        yield part, f"{number:,}", f"{number / size.parameters:.1%}"
    yield "all", f"{size.parameters:,}", "100.0%"
    if size.experts_per_token:
        yield "experts that compute a token", f"{size.experts_per_token:g}", ""


def _compute(params: Params, config: GPTConfig, size: ModelSize) -> Rows:
    train, whole = params.train, size.flops_per_token
    scores = 12 * size.applications * config.n_embd * config.block_size
    head = 6 * config.vocab_size * config.n_embd
    tokens = train.batch_size * train.gradient_accumulation_steps * params.model.block_size
    forward = size.flops_per_token // 3  # the backward pass takes twice as many
    yield "forward, a token", f"{forward:.3g}", ""
    yield "forward and backward, a token", f"{whole:.3g}", "100.0%"
    for part, flops in (
        ("  matrices of the blocks", whole - scores - head),
        ("  scores of attention", scores),
        ("  output projection", head),
        ("6 N, N the parameters, for comparison", 6 * size.parameters),
    ):
        yield part, f"{flops:.3g}", f"{flops / whole:.1%}"
    yield f"a step of {tokens:,} tokens", f"{tokens * size.flops_per_token:.3g}", ""
    yield f"{train.max_iters:,} steps", f"{train.max_iters * tokens * size.flops_per_token:.3g}", ""


def _memory(params: Params, config: GPTConfig, size: ModelSize) -> Rows:
    device = use_device(params.runtime)
    needs, room = training_memory(config, size, params, device), memory_of(device)
    yield "weights", binary(needs.weights), ""
    yield "gradients", binary(needs.gradients), ""
    yield "optimizer", binary(needs.optimizer), ""
    yield f"activations of {params.train.batch_size} sequences", f"~{binary(needs.activations)}", ""
    yield "logits", f"~{binary(needs.logits)}", ""
    if needs.update:
        yield "Muon's update", f"~{binary(needs.update)}", ""
    yield "all", f"~{binary(needs.total)}", ""
    yield f"free here ({device})", binary(room.free), f"of {binary(room.total)}"


def _disk(params: Params, size: ModelSize) -> Rows:
    needs, runs = run_disk(params, size), disk(runs_folder())
    yield "a checkpoint", binary(needs.checkpoint), ""
    yield (
        f"runs/: {needs.checkpoints // needs.checkpoint} checkpoints and the best model",
        binary(needs.run),
        "",
    )
    yield "results/model", binary(needs.published), ""
    raw, tokens = raw_folder(params), tokens_folder(params)
    if raw.is_dir():
        yield str(raw), binary(_bytes_in(raw)), ""
    try:
        manifest = load_manifest(tokens)
    except UserError:
        pass  # not tokenized yet
    else:
        shards = [*manifest.train.shards, *manifest.val.shards]
        yield str(tokens), binary(sum(shard.bytes for shard in shards)), ""
    yield "free here (runs/)", binary(runs.free), f"of {binary(runs.total)}"


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
