"""The training loop: once in a while evaluate, log and save; otherwise take a step."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import clip_grad_norm_

from pipeline.config.errors import UserError
from pipeline.config.params import Train
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate
from pipeline.model.gpt import GPT, Loss
from pipeline.model.load import load_weights
from pipeline.optim.adamw import AdamW
from pipeline.optim.schedule import learning_rate
from pipeline.runtime.compiled import compile_loss
from pipeline.runtime.device import autocast, peak_flops, seed, to_device
from pipeline.storage.files import write_json
from pipeline.tokens.batches import TrainingBatches, evaluation_windows
from pipeline.tokens.keyed_random import mix, uniform
from pipeline.tokens.shards import Tokens
from pipeline.track import Tracker
from pipeline.train.runs import Run
from pipeline.weights.saved import WEIGHTS_FILE, Weights, save_weights

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
DEPTH_STREAM = np.uint64(0xD1B54A32D192ED03)  # keeps the draws of depths apart from the order of batches


class Interrupted(Exception):
    """Someone asked the run to stop; its state is saved."""


@dataclass
class TrainState:
    """Everything that resumes besides the weights and the optimizer's tensors.

    There is no random state: each step seeds its own. The `interval_` fields and `grad_norm` are what has
    piled up since the last row of the log.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_val_loss: float = math.inf
    interval_loss: float = 0.0
    interval_steps: int = 0
    interval_seconds: float = 0.0
    interval_figures: dict[str, float | list[float]] = field(default_factory=dict)
    interval_reports: dict[str, int] = field(default_factory=dict)
    grad_norm: float | None = None
    scaler: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one model on one split; `state` says how far it is."""

    def __init__(
        self,
        model: GPT,
        train: Train,
        tokens: Tokens,
        val: Tokens,
        token_bytes: np.ndarray,
        run: Run,
        device: torch.device,
        compile: bool = False,
        checkpoint_interval: int | None = None,
        log_interval: int = 1,
        probe: Callable[[GPT], dict[str, float]] | None = None,
        probe_interval: int | None = None,
    ) -> None:
        """`probe` takes more figures of the model for the log, each `probe_interval` steps and at the end."""
        self.model = model
        self.train = train
        self.val = val
        self.token_bytes = token_bytes
        self.run = run
        self.device = device
        self.checkpoint_interval = checkpoint_interval or train.eval_interval
        self.log_interval = log_interval
        self.probe = probe
        self.probe_interval = probe_interval
        self.state = TrainState()
        self.optimizer = AdamW(model, train)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.dtype == "float16")
        micro_batches = train.gradient_accumulation_steps
        self.batches = TrainingBatches(tokens, model.block_size, train.batch_size, micro_batches, train.seed)
        self.tokens_per_step = micro_batches * train.batch_size * model.block_size
        self.flops_per_step = self.tokens_per_step * model.flops_per_token()
        self.peak_flops = peak_flops(device, train.dtype)
        self._loss = compile_loss(model) if compile else model.loss
        self._loss_sum = torch.zeros((), device=device)
        self._figure_sums: dict[str, torch.Tensor] = {}
        self._grad_norm: torch.Tensor | None = None
        self._clock = time.perf_counter()
        self._resumed_at: int | None = None

    def fit(self, trackers: Sequence[Tracker]) -> None:
        """Train to `max_iters`, from wherever `state` is. Raises Interrupted after saving, on a signal."""
        self.model.train()
        self._restart_clock()
        steps = 0 if self.train.eval_only else self.train.max_iters
        with stop_requested() as stop:
            while True:
                if self.state.step != self._resumed_at:  # else it was evaluated and logged before
                    self._once_in_a_while(trackers, last=self.state.step == steps)
                if self.state.step == steps:
                    break
                if stop():
                    self.save()
                    raise Interrupted
                self._step()

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self._settle()
        self.state.scaler = self.scaler.state_dict()

        def write(folder: Path) -> None:
            save_weights(self.model.state_dict(), folder)
            save_file(self.optimizer.state_dict(), folder / OPTIMIZER_FILE)
            write_json(folder / STATE_FILE, asdict(self.state))

        self.run.save(self.state.step, write)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        load_weights(self.model, Weights(checkpoint / WEIGHTS_FILE))
        self.optimizer.load_state_dict(load_file(checkpoint / OPTIMIZER_FILE))
        self.state = TrainState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        self.scaler.load_state_dict(self.state.scaler)
        self._loss_sum.fill_(self.state.interval_loss)
        self._figure_sums = {
            name: torch.tensor(value, device=self.device)
            for name, value in self.state.interval_figures.items()
        }
        self._resumed_at = self.state.step

    def _once_in_a_while(self, trackers: Sequence[Tracker], last: bool) -> None:
        step = self.state.step
        val_loss = self._evaluate() if last or step % self.train.eval_interval == 0 else None
        due = self.probe_interval is not None and (last or step % self.probe_interval == 0)
        figures = self._probe() if due else {}
        if val_loss is not None or figures or step % self.log_interval == 0:
            self._log(trackers, val_loss, figures)
        if last or (step and step % self.checkpoint_interval == 0):
            self.save()

    def drawn_depths(self, first_step: int, steps: int) -> list[int | None]:
        """How deep the micro-batches of these steps are read; None is the model's own depth."""
        per_step = self.train.gradient_accumulation_steps
        distribution = self.model.depth_distribution
        if distribution is None:
            return [None] * (steps * per_step)
        micro_steps = np.arange(first_step * per_step, (first_step + steps) * per_step)
        draws: list[int | None] = distribution.quantile(
            uniform(self.train.seed, DEPTH_STREAM, micro_steps)
        ).tolist()
        return draws

    def _step(self) -> None:
        state, train = self.state, self.train
        seed(self.device, int(mix(np.uint64(train.seed) ^ mix(np.uint64(state.step)))))  # for dropout
        self.optimizer.learning_rate = learning_rate(state.step, train)
        for micro_batch, depth in enumerate(self.drawn_depths(state.step, 1)):
            ids, targets = to_device(self.batches.micro_batch(state.step, micro_batch), self.device)
            with autocast(self.device, train.dtype):
                loss = self._loss(ids, targets, depth)
            self.scaler.scale(loss.total / train.gradient_accumulation_steps).backward()
            self._add_up(loss)
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        self._grad_norm = clip_grad_norm_(self.model.parameters(), train.grad_clip or math.inf)
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad()
        self.model.after_step()
        state.step += 1
        state.interval_steps += 1

    def _add_up(self, loss: Loss) -> None:
        """Add a micro-batch to the means in the next row of the log, without waiting for the device."""
        self._loss_sum += loss.cross_entropy / self.train.gradient_accumulation_steps
        counts = self.state.interval_reports
        for name, value in loss.figures.items():
            self._figure_sums[name] = self._figure_sums[name] + value if name in counts else value
            counts[name] = counts.get(name, 0) + 1  # a part that was left out reports nothing

    def _settle(self) -> None:
        """Bring the state up to date with the device, which may still be computing."""
        state = self.state
        state.interval_loss = self._loss_sum.item()
        state.interval_figures = {name: value.tolist() for name, value in self._figure_sums.items()}
        state.grad_norm = None if self._grad_norm is None else self._grad_norm.item()
        elapsed = self._restart_clock()
        state.seconds += elapsed
        state.interval_seconds += elapsed
        self._check_finite("training loss", state.interval_loss)

    def _check_finite(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the {name} is {loss} after step {self.state.step}; lower train.learning_rate "
                f"(now {self.train.learning_rate}) or clip with train.grad_clip (now {self.train.grad_clip})"
            )

    def _restart_clock(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        return elapsed

    def _evaluate(self) -> float:
        """Validation loss on the first `eval_iters` batches, keeping the best model so far."""
        self._settle()
        state = self.state
        with autocast(self.device, self.train.dtype):
            val_loss = self.evaluate(self.val, self.train.eval_iters).loss
        self._check_finite("validation loss", val_loss)
        if val_loss < state.best_val_loss:
            state.best_step, state.best_val_loss = state.step, val_loss

            def write(folder: Path) -> None:
                save_weights(self.model.state_dict(), folder)
                write_json(folder / STATE_FILE, {"step": state.step, "val_loss": val_loss})

            self.run.save_best(write)
        state.seconds += self._restart_clock()
        return val_loss

    def _probe(self) -> dict[str, float]:
        assert self.probe is not None
        self._settle()
        with autocast(self.device, self.train.dtype):
            figures = self.probe(self.model)
        self.state.seconds += self._restart_clock()
        return figures

    def evaluate(self, tokens: Tokens, batches: int | None) -> Evaluation:
        """The current model on a split's first `batches` batches, or on all of it."""
        windows = evaluation_windows(tokens, self.model.block_size, self.train.batch_size, batches)
        return evaluate(self.model, windows, self.token_bytes, self.device)

    def _log(self, trackers: Sequence[Tracker], val_loss: float | None, figures: dict[str, float]) -> None:
        self._settle()
        state = self.state
        steps = state.interval_steps
        speed = steps / state.interval_seconds if steps else None
        row = {
            "step": state.step,
            "tokens": state.step * self.tokens_per_step,
            "train_loss": state.interval_loss / steps if steps else None,
            "val_loss": val_loss,
            "lr": learning_rate(max(0, state.step - 1), self.train),
            "grad_norm": state.grad_norm,
            "tokens_per_second": speed and speed * self.tokens_per_step,
            "mfu": speed and speed * self.flops_per_step / self.peak_flops,
        }
        for name, total in state.interval_figures.items():
            row |= _numbered(name, total, state.interval_reports[name])
        row |= figures
        for tracker in trackers:
            tracker.log(row)
        state.interval_loss, state.interval_steps, state.interval_seconds = 0.0, 0, 0.0
        state.interval_figures, state.interval_reports = {}, {}
        self._loss_sum.zero_()
        self._figure_sums = {}


def _numbered(name: str, total: float | list[float], reports: int) -> dict[str, float]:
    """A figure's mean over its reports; `name_0`, `name_1`, … if it is one for each expert."""
    if isinstance(total, list):
        return {f"{name}_{index}": value / reports for index, value in enumerate(total)}
    return {name: total / reports}


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come. The first one only asks; a second one acts at once, as usual."""
    requested = False
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(*_: object) -> None:
        nonlocal requested
        requested = True
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
