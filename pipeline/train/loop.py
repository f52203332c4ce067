"""The training loop: optimizer steps, with an evaluation, a log row and a checkpoint at set intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate
from pipeline.model.gpt import GPT, Loss
from pipeline.optim.build import build_optimizer, build_schedule
from pipeline.optim.schedule import set_learning_rate
from pipeline.runtime.compiled import compiled
from pipeline.runtime.device import autocast, peak_flops, seed, to_device
from pipeline.runtime.stop import stop_requested
from pipeline.tokens.batches import TrainingBatches, evaluation_windows
from pipeline.tokens.keyed_random import mix, uniform
from pipeline.tokens.shards import Tokens
from pipeline.track.tracker import Tracker
from pipeline.train.checkpoint import Interval, TrainState, load_checkpoint, save_best, save_checkpoint
from pipeline.train.meter import Meter
from pipeline.train.runs import Run

DEPTH_STREAM = np.uint64(0xD1B54A32D192ED03)  # separates depth draws from the batch order

Probe = Callable[[GPT], dict[str, float]]  # more figures of the model for the log


class Interrupted(Exception):
    """A signal stopped the run, after its state was saved."""


@dataclass(frozen=True)
class Data:
    """The training and validation splits; `token_bytes[i]` is the number of UTF-8 bytes of token id i."""

    train: Tokens
    val: Tokens
    token_bytes: np.ndarray


class Trainer:
    """Trains one model; `state` holds its progress."""

    def __init__(
        self,
        model: GPT,
        params: Params,
        data: Data,
        run: Run,
        device: torch.device,
        probe: Probe | None = None,
    ) -> None:
        """`probe` is called every `log.zeroshot_interval` steps and at the end."""
        train = params.train
        self.model = model
        self.train = train
        self.data = data
        self.run = run
        self.device = device
        self.probe = probe
        self.probe_interval = params.log.zeroshot_interval
        self.log_interval = params.log.log_interval
        self.checkpoint_interval = params.runtime.checkpoint_interval or train.eval_interval
        self.state = TrainState()
        self.meter = Meter(self.state.interval, device)
        self.optimizer = build_optimizer(model, train)
        self.schedule = build_schedule(train)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.dtype == "float16")
        self.micro_batches = train.gradient_accumulation_steps
        self.batches = TrainingBatches(
            data.train, model.block_size, train.batch_size, self.micro_batches, train.seed
        )
        self.tokens_per_step = self.micro_batches * train.batch_size * model.block_size
        self.flops_per_step = self.tokens_per_step * model.flops_per_token()
        self.peak_flops = peak_flops(device, train.dtype)
        self._forward: Callable[..., Loss] = compiled(model) if params.runtime.compile else model
        self._grad_norm: torch.Tensor | None = None
        self._resumed_at: int | None = None

    def fit(self, tracker: Tracker) -> None:
        """Train from the current `state` to `max_iters`. On a signal, saves and raises Interrupted."""
        self.model.train()
        self.meter.restart_clock()
        steps = 0 if self.train.eval_only else self.train.max_iters
        with stop_requested() as stop:
            while True:
                if self.state.step != self._resumed_at:  # a resumed step is already logged
                    self._evaluate_log_and_save(tracker, last=self.state.step == steps)
                if self.state.step == steps:
                    break
                if stop():
                    self.save()
                    raise Interrupted
                self._step()

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self._sync()
        self.state.scaler = self.scaler.state_dict()

        self.run.save(
            self.state.step,
            lambda folder: save_checkpoint(folder, self.model, self.optimizer, self.state),
        )

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        self.state = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.scaler.load_state_dict(self.state.scaler)
        self.meter = Meter(self.state.interval, self.device)
        self._resumed_at = self.state.step

    def evaluate(self, tokens: Tokens, batches: int | None) -> Evaluation:
        """Evaluate the current model on the first `batches` batches of a split (None: all of it)."""
        windows = evaluation_windows(tokens, self.model.block_size, self.train.batch_size, batches)
        return evaluate(self.model, windows, self.data.token_bytes, self.device)

    def drawn_depths(self, first_step: int, steps: int) -> list[int | None]:
        """The recurrence depth of each micro-batch in these steps; None is the model's default depth."""
        distribution = self.model.depth_distribution
        if distribution is None:
            return [None] * (steps * self.micro_batches)
        first, last = first_step * self.micro_batches, (first_step + steps) * self.micro_batches
        numbers = uniform(self.train.seed, DEPTH_STREAM, np.arange(first, last))
        depths: list[int | None] = distribution.quantile(numbers).tolist()
        return depths

    def _evaluate_log_and_save(self, tracker: Tracker, last: bool) -> None:
        step = self.state.step
        val_loss = self._evaluate() if last or step % self.train.eval_interval == 0 else None
        due = self.probe_interval is not None and (last or step % self.probe_interval == 0)
        figures = self._probe() if due else {}
        if val_loss is not None or figures or step % self.log_interval == 0:
            self._log(tracker, val_loss, figures)
        if last or (step and step % self.checkpoint_interval == 0):
            self.save()

    def _step(self) -> None:
        state, train = self.state, self.train
        seed(self.device, int(mix(np.uint64(train.seed) ^ mix(np.uint64(state.step)))))  # for dropout
        set_learning_rate(self.optimizer, self.schedule(state.step))
        for micro_batch, depth in enumerate(self.drawn_depths(state.step, 1)):
            ids, targets = to_device(self.batches.micro_batch(state.step, micro_batch), self.device)
            with autocast(self.device, train.dtype):
                loss = self._forward(ids, targets=targets, depth=depth)
            self.scaler.scale(loss.total / self.micro_batches).backward()
            self.meter.add(loss, self.micro_batches)
        self.scaler.unscale_(self.optimizer)
        self._grad_norm = clip_grad_norm_(self.model.parameters(), train.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.model.after_step()
        state.step += 1
        state.interval.steps += 1

    def _sync(self) -> None:
        """Wait for the device, then update loss, gradient norm and times in the state."""
        state = self.state
        self.meter.sync()
        state.grad_norm = None if self._grad_norm is None else self._grad_norm.item()
        elapsed = self.meter.restart_clock()
        state.seconds += elapsed
        state.interval.seconds += elapsed
        self._check_finite("training loss", state.interval.loss)

    def _check_finite(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the {name} is {loss} after step {self.state.step}; lower train.learning_rate "
                f"(now {self.train.learning_rate}) or clip with train.grad_clip (now {self.train.grad_clip})"
            )

    def _evaluate(self) -> float:
        """Validation loss (nats) on the first `eval_iters` batches; saves the model if it is the best yet."""
        self._sync()
        state = self.state
        with autocast(self.device, self.train.dtype):
            val_loss = self.evaluate(self.data.val, self.train.eval_iters).loss
        self._check_finite("validation loss", val_loss)
        if val_loss < state.best_val_loss:
            state.best_step, state.best_val_loss = state.step, val_loss
            self.run.save_best(lambda folder: save_best(folder, self.model, state.step, val_loss))
        state.seconds += self.meter.restart_clock()
        return val_loss

    def _probe(self) -> dict[str, float]:
        assert self.probe is not None
        self._sync()
        with autocast(self.device, self.train.dtype):
            figures = self.probe(self.model)
        self.state.seconds += self.meter.restart_clock()
        return figures

    def _log(self, tracker: Tracker, val_loss: float | None, figures: dict[str, float]) -> None:
        self._sync()
        state, interval = self.state, self.state.interval
        steps = interval.steps
        speed = steps / interval.seconds if steps else None
        tracker.log(
            {
                "step": state.step,
                "tokens": state.step * self.tokens_per_step,
                "train_loss": interval.loss / steps if steps else None,
                "val_loss": val_loss,
                "lr": self.schedule(max(0, state.step - 1)),
                "grad_norm": state.grad_norm,
                "tokens_per_second": speed and speed * self.tokens_per_step,
                "mfu": speed and speed * self.flops_per_step / self.peak_flops,
                **self.meter.means(),
                **figures,
            }
        )
        state.interval = Interval()
        self.meter.begin_interval(state.interval)
