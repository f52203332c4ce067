"""What makes two runs the same: the data, the parameters, the initial weights, and the code of the steps."""

from __future__ import annotations

import hashlib
import json
import tokenize
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tokenize import COMMENT, DEDENT, INDENT, NEWLINE, NL, STRING, generate_tokens
from typing import Any

from pipeline.config.params import Train
from pipeline.optim.build import build_schedule

PACKAGE = Path(__file__).parents[1]

# The code that determines the training steps and the choice of the best model: changing what it does makes
# another run. Code for logs, storage, reports and checks before the first step is left out.
SOURCES = (
    "distributed/parallel.py",
    "distributed/share.py",
    "distributed/sharded.py",
    "distributed/world.py",
    "evaluate/evaluation.py",
    "evaluate/loss.py",
    "model",
    "optim",
    "runtime/compiled.py",
    "runtime/device.py",
    "runtime/prefetch.py",
    "runtime/recompute.py",
    "tokens/batches.py",
    "tokens/keyed_random.py",
    "tokens/shards.py",
    "train/checkpoint.py",
    "train/finite.py",
    "train/init_from.py",
    "train/loop.py",
    "weights/gpt2.py",
    "weights/model_folder.py",
    "weights/open.py",
)

ENDING = {
    "max_iters",
    "eval_interval",
    "eval_only",
    "always_save_checkpoint",
}  # of `train`: no step sees them
SCHEDULE = {"learning_rate", "decay_lr", "warmup_iters", "lr_decay_iters", "min_lr", "cooldown_share"}
EVALUATION = {"eval_iters"}  # no step sees it either, but the losses that choose the best model do

BLOCK = {INDENT: "{", DEDENT: "}", NEWLINE: ";"}  # so that the width of an indentation does not matter


@dataclass(frozen=True)
class Identity:
    """Everything that determines what a run ends with, so that its hash names the run."""

    data: str  # fingerprint of the tokens
    model: dict[str, Any]
    train: dict[str, Any]  # with the sha256 of the initial weights in the place of `init_from`
    code: dict[str, str]  # a hash of each file's meaning
    after: str | None = None  # the run, trained by other code, whose steps this one continues

    @property
    def key(self) -> str:
        """The name of the run's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def changed_code(self, other: Identity) -> list[str]:
        """The files whose meaning differs."""
        names = sorted(self.code.keys() | other.code.keys())
        return [name for name in names if self.code.get(name) != other.code.get(name)]

    def takes_the_steps_of(self, other: Identity, steps: int) -> bool:
        """Whether both runs go through the same states in their first `steps` steps."""
        free = ENDING | SCHEDULE | EVALUATION

        def fixed(identity: Identity) -> tuple[Any, ...]:
            train = {name: value for name, value in identity.train.items() if name not in free}
            return identity.data, identity.model, train, identity.code, identity.after

        return fixed(self) == fixed(other) and self._same_rates(other, steps)

    def _same_rates(self, other: Identity, steps: int) -> bool:
        if all(self.train[name] == other.train[name] for name in SCHEDULE):
            return True
        one, two = build_schedule(Train(**self.train)), build_schedule(Train(**other.train))
        return all(one(step) == two(step) for step in range(steps))


def code_of_steps() -> dict[str, str]:
    """A hash of each file in SOURCES, without its comments and docstrings."""
    files = sorted(path for source in SOURCES for path in _python_files(PACKAGE / source))
    return {
        path.relative_to(PACKAGE.parent).as_posix(): hashlib.sha256(_meaning(path).encode()).hexdigest()[:16]
        for path in files
    }


def _meaning(path: Path) -> str:
    """A module's tokens without comments and docstrings, which determine no step."""
    with tokenize.open(path) as file:
        tokens = [token for token in generate_tokens(file.readline) if token.type not in (COMMENT, NL)]
    words: list[str] = []
    begins, skip = True, False
    for token, following in pairwise(tokens):
        alone = begins and token.type == STRING and following.type == NEWLINE
        if not alone and not skip:
            words.append(BLOCK.get(token.type, token.string))
        begins, skip = token.type in BLOCK, alone  # the end of a docstring's line goes with it
    return " ".join(words)


def _python_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
