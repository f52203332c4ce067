"""What a training needs of memory and disk, from its parameters alone; what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path

import torch

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params, Train
from pipeline.config.paths import tokens_folder
from pipeline.distributed.world import world
from pipeline.model.attend import scores_kept
from pipeline.model.build import LARGE_VOCABULARY, padded_vocab_size
from pipeline.model.chunked_loss import chunk_size
from pipeline.model.size import ModelSize, model_size
from pipeline.runtime.device import DTYPES
from pipeline.runtime.memory import memory_of
from pipeline.storage.machine import binary, check_disk, memory
from pipeline.tokens.shards import load_manifest
from pipeline.train.runs import Run
from pipeline.weights.open import GPT2_VOCABULARIES, open_model

FLOAT = 4  # bytes; weights, gradients and the optimizer's state are float32 in any train.dtype


@dataclass(frozen=True)
class Memory:
    """Bytes of memory that a training step needs. The first three are exact, the others rough."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    update: int

    @property
    def certain(self) -> int:
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def of_each(self, ranks: int) -> Memory:
        """What each of so many ranks needs if they divide the model."""
        divided = ("weights", "gradients", "optimizer", "update")
        return replace(self, **{name: ceil(getattr(self, name) / ranks) for name in divided})


@dataclass(frozen=True)
class Disk:
    """Bytes of disk that a run needs, without the headers of its files: some 100 bytes a tensor."""

    checkpoint: int  # weights and optimizer
    checkpoints: int  # those that are kept, and the one being written
    best: int  # the weights of the best model
    published: int  # the weights in results/model

    @property
    def run(self) -> int:
        """What is needed in the run's own folder."""
        return self.checkpoints + self.best


def expected_config(params: Params) -> GPTConfig | None:
    """The config that training would build; None if its vocabulary is not known before the text is tokenized.

    Raises UserError if the model that training starts from is missing.
    """
    rows = _vocabulary(params)
    return None if rows is None else GPTConfig(**params.model.model_dump(), vocab_size=rows)


def training_memory(config: GPTConfig, size: ModelSize, params: Params, device: torch.device) -> Memory:
    """The memory of one training step, not compiled.

    GPT-2's block keeps 16 values for each token and channel until the backward pass. That is the count of
    Korthikanti et al. 2022 (section 4.1), 34 bytes in 16 bits, without 2 for the masks of dropout. In 16 bits
    the residual stream, which two of the values are, stays float32: 36 bytes. Fused attention keeps no
    scores; plain products, on a CPU in bfloat16 or with dropout, keep those of all pairs, and the masks of
    dropout. Other blocks need up to twice as much. With activation checkpointing each block keeps its input,
    and one block at a time the rest.

    The logits are there twice: log-softmax and gradient. Of a large vocabulary it is only a chunk, and two
    copies of the gradient of the output projection. Muon makes about four copies of its matrices while it
    updates them, beside freed memory that does not fit them.
    """
    train = params.train
    trains = _trains(train)
    tokens = train.batch_size * config.block_size
    block = config.n_embd * (64 if train.dtype == "float32" else 36)
    dtype = DTYPES[train.dtype]
    if config.position != "alibi":
        scores = scores_kept(device, dtype, config.block_size, config.dropout)
        block += round(config.n_head * scores * dtype.itemsize * (2 if config.dropout else 1))
    applications = _applications_with_gradient(config, size)
    kept = block * applications
    if params.runtime.activation_checkpointing:
        kept = FLOAT * config.n_embd * applications + block
    large = config.vocab_size >= LARGE_VOCABULARY
    in_chunk = min(tokens, chunk_size(tokens)) if large else tokens
    projection = 2 * FLOAT * config.vocab_size * config.n_embd if large else 0
    return Memory(
        weights=FLOAT * size.values + size.table_bytes,
        gradients=trains * FLOAT * size.parameters,
        optimizer=_moments(train, size),
        activations=trains * tokens * kept,
        logits=(1 + trains) * in_chunk * config.vocab_size * FLOAT + trains * projection,
        update=trains * 4 * FLOAT * _muon_values(train, size),
    )


def run_disk(params: Params, size: ModelSize) -> Disk:
    """The disk that a run needs at its peak, and its published model."""
    train = params.train
    weights = FLOAT * size.values
    checkpoint = weights + _moments(train, size)
    runtime, steps = params.runtime, train.max_iters if _trains(train) else 1
    saves = ceil(steps / (runtime.checkpoint_interval or train.eval_interval))
    for_good = steps // runtime.keep_every if runtime.keep_every else 0
    if train.cooldown_start and train.cooldown_start < steps:
        for_good += 1
    kept = min(saves, runtime.keep_checkpoints + 1) + for_good
    return Disk(checkpoint, kept * checkpoint, weights, weights)


def check_memory(
    params: Params, config: GPTConfig, device: torch.device, note: Callable[[str], None]
) -> None:
    """Raise UserError if the training cannot fit into memory; call `note` if it perhaps does not fit.

    Only what is needed for certain counts, against all the memory there is.
    """
    size, ranks = model_size(config), world()
    needs, room = training_memory(config, size, params, device), memory_of(device)
    held = needs.of_each(ranks.size) if params.runtime.parallel == "fsdp" else needs
    here = ranks.local_size
    on_device = here if device.type == "cpu" else 1  # ranks that share the device
    what = f"{size.parameters:,} parameters (model.n_layer = {config.n_layer}, n_embd = {config.n_embd})"
    if here > 1:
        what += f" on {here} processes"
    for needed, there, where in (
        (here * needs.weights, memory().total, "this machine"),  # where each builds it, whatever the device
        (on_device * held.certain, room.total, str(device)),
    ):
        if needed > there:
            raise UserError(
                f"{what} need {binary(needed)} of memory, without activations, but {where} has "
                f"{binary(there)}; choose a smaller model: `gpt-pipeline sizing` shows what needs how much"
            )
    if on_device * held.total > room.free:
        note(
            f"note: training needs about {binary(on_device * held.total)} of memory, but {device} has "
            f"{binary(room.free)} free; if that is too little, halve train.batch_size and double "
            "train.gradient_accumulation_steps"
        )


def check_room_for_run(params: Params, config: GPTConfig, run: Run) -> None:
    """Raise UserError if the checkpoints of a run do not fit on its disk beside what is there of it."""
    needed = run_disk(params, model_size(config)).run
    there = sum(path.stat().st_size for path in run.folder.glob("*/*") if path.is_file())
    check_disk(run.folder.parent, needed - there, "the checkpoints of this run")


def _vocabulary(params: Params) -> int | None:
    """Rows of the embedding, padding included."""
    start, tokenizer = params.train.init_from, params.tokenizer
    if start in PUBLISHED and not Path(start).is_dir():
        return PUBLISHED[start].config.vocab_size
    if start not in ("scratch", "resume"):
        return open_model(start).config.vocab_size
    known = {"bpe": tokenizer.vocab_size, "gpt2": GPT2_VOCABULARIES[0], "byte": 257}
    if tokenizer.name in known:
        return padded_vocab_size(known[tokenizer.name])
    try:
        return padded_vocab_size(load_manifest(tokens_folder(params)).vocab_size)
    except UserError:  # not tokenized yet, or not as it should be, which later stages say
        return None


def _moments(train: Train, size: ModelSize) -> int:
    """Bytes of the optimizer's state: AdamW has two moments, Muon one."""
    return _trains(train) * FLOAT * (2 * size.parameters - _muon_values(train, size))


def _muon_values(train: Train, size: ModelSize) -> int:
    return size.matrices if train.optimizer == "muon" else 0


def _trains(train: Train) -> bool:
    return train.max_iters > 0 and not train.eval_only


def _applications_with_gradient(config: GPTConfig, size: ModelSize) -> int:
    """How many applications of a block keep activations, in the deepest forward pass of training."""
    if not config.loops:
        return size.applications
    looped = min(config.max_depth, config.recurrent_backprop_depth or config.max_depth)
    return size.applications - config.loop_depth + looped
