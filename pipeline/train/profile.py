"""Where the time of a training step goes, and how fast it could be.

The steps are those of training, with its batches, its log and its optimizer, in a folder that is not runs/.
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from pipeline.config.errors import UserError
from pipeline.config.params import Params, Train
from pipeline.config.paths import tokens_folder
from pipeline.model.build import build_gpt
from pipeline.model.size import model_size
from pipeline.runtime.device import autocast, use_device
from pipeline.runtime.memory import memory_of
from pipeline.runtime.rates import Recorder, matrix_rate
from pipeline.tokens.shards import Tokens, load_manifest, open_split, open_tokenizer
from pipeline.track.open import open_trackers
from pipeline.train.init_from import Start
from pipeline.train.loop import Data, Trainer
from pipeline.train.runs import Run
from pipeline.train.sizing import expected_config, training_memory

PARTS = ("data", "forward", "backward", "optimizer", "logging", "rest")
WARMUP = 3  # steps that are not measured: memory is allocated, and programs are compiled


@dataclass(frozen=True)
class StepTimes:
    """Seconds of training steps, and of their parts; an evaluation and a checkpoint are in none."""

    steps: list[float]
    parts: Mapping[str, float]  # means; `rest` is what the others leave

    @property
    def median(self) -> float:
        return median(self.steps)

    @property
    def share_outside(self) -> float:
        """The share of the time that is not in the forward pass, the backward pass or the optimizer."""
        outside = sum(self.parts[name] for name in ("data", "logging", "rest"))
        return outside / sum(self.parts.values())


class StepProfile:
    """A training, ready to be measured; it writes to `folder`, and to nothing else."""

    def __init__(self, params: Params, folder: Path, fixed_batch: bool = False) -> None:
        """With `fixed_batch`, or if the text is not tokenized, every step reads the same random tokens.

        Raises UserError if the parameters cannot be trained with.
        """
        trackers = [name for name in params.log.trackers if name != "wandb"]
        log = params.log.model_copy(update={"trackers": trackers, "tensorboard_dir": None})
        self.params = params.model_copy(update={"log": log})
        self.device = use_device(params.runtime)
        self.folder = folder
        tokens = tokens_folder(params)
        self.text = None if fixed_batch or not (tokens / "manifest.json").exists() else tokens
        torch.manual_seed(params.train.seed)
        if self.text is None:
            config = expected_config(params)
            if config is None:
                load_manifest(tokens)  # says what is missing
            assert config is not None
            model, vocabulary = build_gpt(config), config.vocab_size
            length = 1 + config.block_size * params.train.batch_size
            ids = np.random.default_rng(0).integers(vocabulary, size=length, dtype=np.uint32)
            random = Tokens([ids.astype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)])
            data = Data(random, random, np.ones(vocabulary, dtype=np.int64))
        else:
            tokenizer = open_tokenizer(tokens)
            model = Start(params, tokenizer, tokens).build()
            train, val = open_split(tokens, "train"), open_split(tokens, "val")
            data = Data(train, val, tokenizer.token_bytes)
        self.trainer = Trainer(model, self.params, data, Run(folder), self.device)
        self.trainer.steps = sys.maxsize  # none of those measured is the last
        self.trainer.train = params.train.model_copy(update={"eval_interval": sys.maxsize})
        self.trainer.checkpoint_interval = sys.maxsize

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def measure(self, steps: int) -> StepTimes:
        """Take so many steps, and measure them. The first call takes a few more before them.

        A GPU works on while the next part begins, so its steps are measured once more as they are.
        """
        trainer = self.trainer
        trainer.model.train()
        watch = _Watch(self.wait)
        with (
            contextlib.redirect_stderr(io.StringIO()),  # what training shows on the screen
            open_trackers(self.folder, self.params, trainer.state.step) as trackers,
        ):

            def step() -> None:
                watch.begin()
                trainer._step()
                watch.end_step()
                trackers.tick(trainer.state.step)
                trainer._evaluate_log_and_save(trackers)
                watch.end_logging()

            while trainer.state.step < WARMUP:
                step()
            watch.forget()
            with watch.parts_of(trainer):
                for _ in range(steps):
                    step()
            times = watch.times()
            if self.device.type == "cpu":
                return times
            watch.forget()
            for _ in range(steps):
                step()
        return StepTimes(watch.times().steps, times.parts)

    def matrix_rate(self) -> float:
        """FLOP/s of the matrix products of one forward and backward pass, each of them alone."""
        trainer, recorder = self.trainer, Recorder()
        ids, targets = (
            tensor.to(self.device) for tensor in trainer.batches.micro_batch(trainer.state.step, 0)
        )
        with torch.compiler.set_stance("force_eager"), recorder:  # machine code would hide its products
            with autocast(self.device, self.params.train.dtype):
                loss = trainer.model(ids, targets=targets)
            loss.total.backward()
        trainer.optimizer.zero_grad()
        return matrix_rate(recorder.products, self.wait)

    def trace(self, path: Path, steps: int = 3) -> str:
        """Write a trace for Chrome's about:tracing. Returns a table of the operators that take most time."""
        from torch.profiler import ProfilerActivity, profile

        self.measure(1)
        gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
            self.measure(steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
        table: str = found.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40)
        return table


class _Watch:
    """Notes the time at which each part of a step ends."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.forget()

    def forget(self) -> None:
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._steps: list[float] = []

    def begin(self) -> None:
        self._began = self._last = self._now()

    def end_step(self) -> None:
        self._add("rest")

    def end_logging(self) -> None:
        self._add("logging")
        self._steps.append(self._last - self._began)

    def times(self) -> StepTimes:
        return StepTimes(
            self._steps, {name: seconds / len(self._steps) for name, seconds in self._spent.items()}
        )

    @contextlib.contextmanager
    def parts_of(self, trainer: Trainer) -> Iterator[None]:
        """Measure the parts of this trainer's steps. Whatever precedes a forward pass is `data`."""
        places = ((trainer, "_forward", "data", "forward"), (torch.Tensor, "backward", "rest", "backward"))
        with contextlib.ExitStack() as stack:
            for place in (*places, (trainer, "_update", "rest", "optimizer")):
                stack.enter_context(self._measured(*place))
            yield

    @contextlib.contextmanager
    def _measured(self, owner: Any, name: str, before: str, part: str) -> Iterator[None]:
        function, own = getattr(owner, name), name in vars(owner)

        @wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            self._add(before)
            result = function(*arguments, **options)
            self._add(part)
            return result

        setattr(owner, name, measured)
        try:
            yield
        finally:
            setattr(owner, name, function) if own else delattr(owner, name)

    def _add(self, part: str) -> None:
        now = self._now()
        self._spent[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        self._wait()
        return time.perf_counter()


def by_turns(profiles: Mapping[str, StepProfile], steps: int, turns: int = 3) -> dict[str, float]:
    """The median seconds of a step of each, measured by turns so that a slower machine slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in profiles}
    for _ in range(turns):
        for name, profile in profiles.items():
            found[name].append(profile.measure(max(1, steps // turns)).median)
    return {name: mean(seconds) if turns < 3 else median(seconds) for name, seconds in found.items()}


def micro_batches(train: Train) -> list[tuple[int, int]]:
    """Every (batch_size, gradient_accumulation_steps) with as many sequences a step, each twice the last."""
    sequences = train.batch_size * train.gradient_accumulation_steps
    smallest = sequences
    while smallest % 2 == 0:
        smallest //= 2
    sizes = [smallest]
    while sizes[-1] * 2 <= sequences:
        sizes.append(sizes[-1] * 2)
    return [(size, sequences // size) for size in sizes]


def largest_that_fits(params: Params, folder: Path) -> tuple[int, int]:
    """The largest micro-batch that fits, of `micro_batches`, as (batch_size, gradient_accumulation_steps).

    On a GPU a step is tried with each; elsewhere the estimated memory must be free. Raises UserError if not
    even the smallest fits.
    """
    device = use_device(params.runtime)
    best = None
    for size, number in micro_batches(params.train):
        sizes = [f"train.batch_size={size}", f"train.gradient_accumulation_steps={number}"]
        if not _fits(params.with_overrides(sizes), folder / str(size), device):
            break
        best = size, number
    if best is None:
        raise UserError(
            f"train.batch_size: {micro_batches(params.train)[0][0]} sequences are too many for {device}; "
            "make model.block_size or the model smaller"
        )
    return best


def _fits(params: Params, folder: Path, device: torch.device) -> bool:
    if device.type == "cuda":
        # Gradients are there from the second micro-batch on: more need no more memory.
        number = min(2, params.train.gradient_accumulation_steps)
        tried = params.with_overrides([f"train.gradient_accumulation_steps={number}"])
        try:
            StepProfile(tried, folder, fixed_batch=True).measure(1)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()  # a trainer is part of a cycle, and would keep its memory
            torch.cuda.empty_cache()
            torch.compiler.reset()  # or the next size would be compiled for any size, which is slower
        return True
    config = expected_config(params)
    if config is None:
        load_manifest(tokens_folder(params))  # says what is missing
    assert config is not None
    return training_memory(config, model_size(config), params, device).total <= memory_of(device).free
