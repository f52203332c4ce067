"""The training loop: optimizer steps, with an evaluation, a log row and a checkpoint at set intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from pipeline.config.params import Params
from pipeline.distributed.parallel import parallel
from pipeline.distributed.sharded import local, whole
from pipeline.distributed.share import share_of
from pipeline.distributed.world import Signals, world
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate, windows_at_once
from pipeline.model.gpt import GPT, Loss
from pipeline.optim.build import build_optimizer, build_schedule
from pipeline.optim.schedule import set_learning_rate
from pipeline.runtime.compiled import compiled
from pipeline.runtime.device import autocast, peak_flops, seed, to_device
from pipeline.runtime.prefetch import Prefetch
from pipeline.runtime.stop import stop_requested
from pipeline.tokens.batches import Batch, TrainingBatches, evaluation_windows
from pipeline.tokens.keyed_random import mix, uniform
from pipeline.tokens.shards import Tokens
from pipeline.track.tracker import Tracker
from pipeline.train import health
from pipeline.train.background import Background
from pipeline.train.checkpoint import (
    Interval,
    Snapshot,
    TrainState,
    best_writer,
    checkpoint_writer,
    load_progress,
)
from pipeline.train.finite import Finite, NotFinite
from pipeline.train.meter import Meter
from pipeline.train.runs import Run

DEPTH_STREAM = np.uint64(0xD1B54A32D192ED03)  # separates depth draws from the batch order

Probe = Callable[[GPT], dict[str, float]]  # more figures of the model for the log
Figures = dict[str, float | int | None]  # of one row of the log


class Interrupted(Exception):
    """A signal stopped the run, after its state was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.status = 128 + number  # the exit status of a shell's command that a signal ends


@dataclass(frozen=True)
class Data:
    """The training and validation splits; `token_bytes[i]` is the number of UTF-8 bytes of token id i."""

    train: Tokens
    val: Tokens
    token_bytes: np.ndarray


class Trainer:
    """Trains one model; `state` holds its progress.

    A checkpoint of a step holds what any run has after that step, also one that goes on: the evaluation and
    the log row that are due then. What only the last step has comes after its checkpoint.
    """

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
        self.steps = 0 if train.eval_only else train.max_iters
        self.probe_interval = params.log.zeroshot_interval
        self.log_interval = params.log.log_interval
        self.health_interval = params.log.health_interval
        self.checkpoint_interval = params.runtime.checkpoint_interval or train.eval_interval
        self.state = TrainState()
        self.meter = Meter(self.state.interval, device)
        if params.runtime.compile:
            compiled(model)
        if params.runtime.activation_checkpointing:
            from pipeline.runtime.recompute import recompute_activations  # needs 8 MB more of PyTorch

            recompute_activations(model)
        ranks = world()
        self.share = share_of(ranks.rank, ranks.size, train.gradient_accumulation_steps, train.batch_size)
        self.parallel = parallel(params.runtime.parallel, model, device, ranks)
        self._forward = self.parallel.forward
        self.optimizer = build_optimizer(model, train)
        self.schedule = build_schedule(train)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.dtype == "float16")
        self.micro_batches = train.gradient_accumulation_steps
        self.batches = TrainingBatches(
            data.train, model.block_size, train.batch_size, self.micro_batches, train.seed
        )
        self._prefetch = Prefetch(self._micro_batch, device)
        self.tokens_per_step = self.micro_batches * train.batch_size * model.block_size
        self.flops_per_step = self.tokens_per_step * model.flops_per_token()
        self.peak_flops = ranks.size * peak_flops(device, train.dtype)
        self._finite = Finite(device)
        self._grad_norm: torch.Tensor | None = None
        self._health_of_update: health.Figures = {}
        self._resumed_at: int | None = None
        self._snapshot = Snapshot()

    def fit(self, tracker: Tracker, tick: Callable[[int], None] = lambda step: None) -> None:
        """Train from the current `state` to the last step. On a signal, saves and raises Interrupted.

        `tick` is called with the number of steps after each one; on a GPU the step may still be running.
        Raises NotFinite, before the update, when a loss or a gradient is not finite.
        """
        self.model.train()
        self.meter.restart_clock()
        agreed = Signals(world())
        with stop_requested() as stop, Background() as self._background, self._prefetch:
            while True:
                if self.state.step != self._resumed_at:  # what is due at a resumed step is done
                    self._evaluate_log_and_save(tracker)
                if self.state.step == self.steps:
                    break
                if number := agreed(stop()):
                    self._save(best=False, checkpoint=True)
                    self._background.wait()
                    raise Interrupted(number)
                self._step()
                tick(self.state.step)
            self._background.wait()
            self._end(tracker)

    @property
    def where(self) -> str:
        """The device, and how many of them."""
        size = world().size
        return str(self.device) if size == 1 else f"{size} x {self.device.type} ({self.parallel.name})"

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint, whose weights the model has."""
        self.state = load_progress(checkpoint, self.optimizer)
        self.scaler.load_state_dict(self.state.scaler)
        self.meter = Meter(self.state.interval, self.device)
        self._resumed_at = self.state.step

    def evaluate(self, tokens: Tokens, batches: int | None) -> Evaluation:
        """Evaluate the current model on the first `batches` batches of a split (None: all of it).

        That is `train.batch_size` windows each, as in training, however many are read at once.
        """
        limit = None if batches is None else batches * self.train.batch_size
        at_once = windows_at_once(self.model, self.device)
        windows = evaluation_windows(tokens, self.model.block_size, at_once, limit)
        evaluation = evaluate(self.model, windows, self.data.token_bytes, self.device, self.train.dtype)
        self.parallel.free()
        return evaluation

    def drawn_depths(self, first_step: int, steps: int) -> list[int | None]:
        """The recurrence depth of each micro-batch in these steps; None is the model's default depth."""
        distribution = self.model.depth_distribution
        if distribution is None:
            return [None] * (steps * self.micro_batches)
        first, last = first_step * self.micro_batches, (first_step + steps) * self.micro_batches
        numbers = uniform(self.train.seed, DEPTH_STREAM, np.arange(first, last))
        depths: list[int | None] = distribution.quantile(numbers).tolist()
        return depths

    def _evaluate_log_and_save(self, tracker: Tracker) -> None:
        """What is due after this step, whichever step is the last."""
        step = self.state.step
        figures = self._health() if self._watches(step) else Figures()
        figures = self._measure(tracker, lambda interval: step % interval == 0, figures)
        if "train_loss" in figures:
            self.state.interval = Interval()
            self.meter.begin_interval(self.state.interval)
        self._save(
            best="val_loss" in figures and self.state.best[0] == step,
            checkpoint=step == self.steps or (step > 0 and self._is_saved(step)),
        )

    def _end(self, tracker: Tracker) -> None:
        """What the last step has besides, so that its model is evaluated and its row is complete."""
        step = self.state.step
        self._measure(tracker, lambda interval: step % interval != 0, Figures())

    def _measure(self, tracker: Tracker, due: Callable[[int], bool], figures: Figures) -> Figures:
        """Measure what is due, as `due` says of the steps between two times, and log it with `figures`."""
        if due(self.train.eval_interval):
            figures |= self._evaluate()
        if self.probe_interval is not None and due(self.probe_interval):
            figures |= self._probe()
        if due(self.log_interval):
            figures |= self._interval_figures()
        if figures:
            self._log(tracker, figures)
        return figures

    def _watches(self, step: int) -> bool:
        """Whether this step, counted from 1, is measured layer by layer; 0 is the model before training."""
        return self.health_interval is not None and step % self.health_interval == 0

    def _is_saved(self, step: int) -> bool:
        return step % self.checkpoint_interval == 0 or self.run.keep.forever(step)

    def _save(self, best: bool, checkpoint: bool) -> None:
        """Begin to write the best model and a checkpoint as they are now; training goes on meanwhile."""
        if not best and not checkpoint:
            return
        self._sync()
        self._background.wait()
        state = self.state
        self.state.scaler = self.scaler.state_dict()
        writers = []
        if best:
            write_best = best_writer(self._snapshot, self.model, *state.best)
            writers.append(lambda: self.run.save_best(write_best))
        if checkpoint:
            step = state.step
            log = self.run.log.read_text(encoding="utf-8") if self.run.log.exists() else ""
            write = checkpoint_writer(self._snapshot, self.model, self.optimizer, state, log)
            writers.append(lambda: self.run.save(step, write))

        def write_all() -> None:
            for writer in writers:
                writer()

        if world().is_main:
            self._background.start(write_all)

    def _step(self) -> None:
        state, train, own = self.state, self.train, self.share.micro_batches
        set_learning_rate(self.optimizer, self.schedule(state.step))
        losses: list[Loss] = []
        depths = self.drawn_depths(state.step, 1)
        for number, micro_batch in enumerate(own):
            self._seed(state.step * self.micro_batches + micro_batch)
            ids, targets = self._prefetch(state.step * len(own) + number)
            with self.parallel.accumulating(last=number == len(own) - 1):
                with autocast(self.device, train.dtype):
                    loss = self._forward(ids, targets=targets, depth=depths[micro_batch])
                self.scaler.scale(loss.total / len(own)).backward()
            losses.append(loss)
        self.scaler.unscale_(self.optimizer)
        update = partial(self._update, losses)
        if self._watches(state.step + 1):
            self._health_of_update = health.of_update(self.model, update)
        else:
            update()
        self.optimizer.zero_grad()
        self.model.after_step(world().sum)
        state.step += 1

    def _seed(self, micro_batch: int) -> None:
        """Seed dropout and noise for a micro-batch, by its number since the first step.

        Ranks that share one draw different numbers for their rows.
        """
        number = mix(np.uint64(self.train.seed) ^ mix(np.uint64(micro_batch)))
        seed(self.device, int(mix(number ^ np.uint64(self.share.part)) if self.share.part else number))

    def _micro_batch(self, number: int) -> Batch:
        """One of this rank's micro-batches, by its number since the first step."""
        step, index = divmod(number, len(self.share.micro_batches))
        return self.batches.micro_batch(step, self.share.micro_batches[index], self.share.rows)

    def _update(self, losses: list[Loss]) -> None:
        """Clip the gradient and take the step, unless it is left out."""
        self._grad_norm = _clip_gradient(self.model, self.train.grad_clip or math.inf)
        if self._may_update(losses):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            for loss in losses:
                self.meter.add(loss, len(losses))
            if self.train.grad_clip:
                self.meter.report("clipped_share", (self._grad_norm > self.train.grad_clip).float())
            self.state.interval.steps += 1

    def _may_update(self, losses: list[Loss]) -> bool:
        """Whether to take the step: False if it is left out because it is not finite.

        A GPU is not waited for, but makes no update from that step on; `_sync` then stops the run.
        """
        assert self._grad_norm is not None
        total = world().sum(torch.stack([loss.total.detach() for loss in losses]).sum())
        scaled = self.scaler.is_enabled()  # then a gradient may overflow, and the scale falls
        self._finite.look(self.state.step + 1, total, total if scaled else self._grad_norm)
        if self.device.type == "cpu" or self.train.skip_nonfinite_steps or scaled:
            if self._finite.found.item() and self.state.skipped < self.train.skip_nonfinite_steps:
                self.state.skipped += 1
                self._finite.forget()
                return False
            self._stop_if_not_finite()
        self.optimizer.found_inf = self._finite.found
        return True

    def _stop_if_not_finite(self) -> None:
        incident = self._finite.incident()
        if incident is not None:
            step = incident.step - 1
            windows = [self.batches.starts(step, number).tolist() for number in range(self.micro_batches)]
            self._stop(str(incident), asdict(incident) | {"windows": windows})

    def _stop(self, problem: str, facts: dict[str, Any]) -> NoReturn:
        self._background.wait()
        rate = self.schedule(max(0, facts["step"] - 1))
        path = world().from_main(
            lambda: self.run.note_incident({"problem": problem, **facts, "learning_rate": rate})
        )
        raise NotFinite(
            f"{problem}; {path} has the details; lower train.learning_rate "
            f"(now {self.train.learning_rate}) or clip with train.grad_clip (now {self.train.grad_clip})"
        )

    def _sync(self) -> None:
        """Wait for the device, then update loss, gradient norm and times in the state."""
        state = self.state
        self._stop_if_not_finite()
        self.meter.sync()
        state.grad_norm = None if self._grad_norm is None else self._grad_norm.item()
        elapsed = self.meter.restart_clock()
        state.seconds += elapsed
        state.interval.seconds += elapsed

    def _evaluate(self) -> Figures:
        """Validation loss (nats, and bits per byte) on the first `eval_iters` batches, noted in the state."""
        self._sync()
        state = self.state
        evaluation = self.evaluate(self.data.val, self.train.eval_iters)
        val_loss = evaluation.loss
        if not math.isfinite(val_loss):
            self._stop(f"step {state.step:,}: the validation loss is {val_loss}", {"step": state.step})
        state.evaluations.append((state.step, val_loss))
        state.seconds += self.meter.restart_clock()
        return {"val_loss": val_loss, "val_bpb": evaluation.bits_per_byte}

    def _probe(self) -> Figures:
        assert self.probe is not None
        self._sync()
        with autocast(self.device, self.train.dtype):
            figures = self.probe(self.model)
        self.parallel.free()
        self.state.seconds += self.meter.restart_clock()
        return dict(figures)

    def _health(self) -> Figures:
        """What the last step did to the layers, and what they do on its tokens."""
        self._sync()
        last_step = max(1, self.state.step) - 1  # before the first step, that one
        ids, _ = to_device(self.batches.micro_batch(last_step, self.micro_batches - 1), self.device)
        with autocast(self.device, self.train.dtype):
            of_pass = health.of_pass(self.model, ids)
        self.parallel.free()
        figures = health.numbers(self._health_of_update | of_pass)
        self.state.seconds += self.meter.restart_clock()
        return dict(figures)

    def _interval_figures(self) -> Figures:
        """The means since the last row that has them."""
        self._sync()
        state, interval = self.state, self.state.interval
        if not interval.steps:
            return Figures(train_loss=None)
        speed = interval.steps / interval.seconds
        return {
            "train_loss": interval.loss / interval.steps,
            "grad_norm": state.grad_norm,
            "tokens_per_second": speed * self.tokens_per_step,
            "mfu": speed * self.flops_per_step / self.peak_flops,
            **self.meter.means(),
            **({"skipped_steps": state.skipped} if state.skipped else {}),
        }

    def _log(self, tracker: Tracker, figures: Figures) -> None:
        step = self.state.step
        rate = self.schedule(max(0, step - 1))
        progress = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "lr": rate,
            "seconds": self.state.seconds,
        }
        tracker.log({**progress, **figures})


def _clip_gradient(model: GPT, limit: float) -> torch.Tensor:
    """Clip the gradient to a norm of `limit`, and return the norm that it had: `clip_grad_norm_` to the bit.

    That always multiplies, on a CPU mostly by 1; a GPU multiplies rather than being waited for. Without a
    limit, which is infinity, nothing is multiplied.
    """
    gradients = [part.grad for part in model.parameters() if part.grad is not None]
    norm = whole(get_total_norm(gradients))
    if limit == math.inf:
        return norm
    factor = limit / (norm + 1e-6)
    if norm.device.type != "cpu" or not factor >= 1:
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor.clamp(max=1.0))
    return norm
