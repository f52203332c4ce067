"""params.yaml as typed, frozen sections. Its keys are documented here, and those of `model` in model.py.

A parameter that nanoGPT has keeps nanoGPT's name. `runtime` and `log` say how and where to run and do not
affect the results, so no stage depends on them and changing them retrains nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import Model, Repeats
from pipeline.config.model_rules import check_start
from pipeline.config.reading import parse_yaml
from pipeline.config.validation import Section, known_names, read_yaml, suggest, validate

PARAMS_FILE = Path("params.yaml")
DEFAULTS_FILE = Path(__file__).parents[2] / "presets" / "default.yaml"  # installed beside this package, too

Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Data(Section):
    """the text"""

    dataset: Name = Field(description="the folder data/<dataset>/; its dataset.yaml says where the text is")
    shard_tokens: int = Field(gt=0, description="tokens in one shard file; the last shard holds the rest")


class Tokenizer(Section):
    """how text is cut into tokens"""

    name: Literal["char", "byte", "gpt2", "bpe", "pretrained"] = Field(
        description="char, byte, gpt2 (OpenAI's), bpe (learned from the text) or pretrained"
    )
    vocab_size: int = Field(
        ge=257, le=1 << 20, description="for bpe: ids to learn; the other tokenizers know their size"
    )
    model: Annotated[str, Field(min_length=1)] | None = Field(
        description="for pretrained: the model whose tokenizer to use, a folder or a name on the hub"
    )

    @model_validator(mode="after")
    def _pretrained_names_its_model(self) -> Tokenizer:
        if self.name == "pretrained" and self.model is None:
            raise ValueError("name = pretrained needs tokenizer.model: the model whose tokenizer to use")
        return self


class Train(Section):
    """how the model is trained"""

    init_from: Annotated[str, Field(min_length=1)] = Field(
        description="scratch, resume (an error without a run to continue), gpt2, a model's folder or hub name"
    )
    seed: int = Field(ge=0, lt=2**63, description="for the initial weights, the batch order and dropout")
    batch_size: int = Field(ge=1, description="sequences in a micro-batch")
    gradient_accumulation_steps: int = Field(ge=1, description="micro-batches in a step")
    max_iters: int = Field(ge=0, description="optimizer steps")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        description="of matrix products: float32, bfloat16, or float16 with scaled gradients"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        description="adamw, or muon (Jordan et al. 2024) for the blocks' matrices and AdamW for the rest"
    )
    learning_rate: float = Field(ge=0, description="the peak, reached after warmup_iters")
    muon_learning_rate: float = Field(ge=0, description="for muon: the peak for the matrices of the blocks")
    embedding_learning_rate: float = Field(ge=0, description="for muon: the peak for the embeddings")
    weight_decay: float = Field(
        ge=0,
        description="on matrices and embeddings, not on biases and norms; for muon: on its matrices only",
    )
    muon_momentum: Fraction = Field(description="for muon: decay of the running mean of the gradient")
    beta1: Fraction = Field(description="AdamW: decay of the running mean of the gradient")
    beta2: Fraction = Field(description="AdamW: decay of the running mean of its square")
    grad_clip: float = Field(ge=0, description="largest gradient norm; 0.0: no limit")
    skip_nonfinite_steps: int = Field(
        ge=0, description="leave out so many steps whose loss or gradient is not finite before stopping"
    )
    decay_lr: bool = Field(description="warm up, and decay later; false: keep learning_rate")
    warmup_iters: int = Field(ge=0, description="steps of linear warmup")
    lr_decay_iters: int = Field(ge=1, description="step at which min_lr is reached; usually max_iters")
    min_lr: float = Field(ge=0, description="where the decay ends; usually learning_rate / 10")
    cooldown_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="keep the peak, then decay linearly in this last share of lr_decay_iters; blank: a cosine"
    )
    eval_interval: int = Field(ge=1, description="steps between evaluations")
    eval_iters: Annotated[int, Field(ge=1)] | None = Field(
        description="batches in each evaluation; blank: the whole split, as at the end"
    )
    eval_only: bool = Field(description="evaluate the initial model and stop")
    always_save_checkpoint: bool = Field(
        description="keep the last model; false: keep the one with the best val loss"
    )

    @model_validator(mode="after")
    def _schedule_is_ordered(self) -> Train:
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}; "
                "lower min_lr or set decay_lr: false"
            )
        if self.decay_lr and self.warmup_iters > self.lr_decay_iters:
            raise ValueError(
                f"warmup_iters = {self.warmup_iters} is above lr_decay_iters = {self.lr_decay_iters}; "
                "warm up for fewer steps"
            )
        if self.cooldown_start is not None and self.cooldown_start < self.warmup_iters:
            raise ValueError(
                f"cooldown_share = {self.cooldown_share} begins after step {self.cooldown_start}, but "
                f"warmup_iters = {self.warmup_iters}; warm up or cool down for fewer steps"
            )
        return self

    @property
    def cooldown_start(self) -> int | None:
        """The step from which the learning rate falls linearly; None if it does not."""
        if not self.decay_lr or self.cooldown_share is None:
            return None
        return self.lr_decay_iters - round(self.cooldown_share * self.lr_decay_iters)


class Runtime(Section):
    """how to run; the results do not depend on it, so changing these retrains nothing"""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        description="cpu, cuda, cuda:1, mps, or auto for the fastest there is"
    )
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        description="on several processes (NPROC=8 make train-...): ddp, a copy of the model on each; "
        "fsdp, a piece of it; auto: ddp"
    )
    compile: bool = Field(
        description="torch.compile: half a minute to start, later seconds; faster above all on a GPU"
    )
    activation_checkpointing: bool = Field(
        description="keep only the input of each block and compute the rest twice: less memory, slower"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        description="CPU threads; blank: PyTorch chooses"
    )
    workers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        description="threads, for a long text processes, that make tokens of it; blank: one for each CPU core"
    )
    executor: Literal["local", "slurm"] = Field(
        description="where these processes run: local, or slurm for a job array on a cluster"
    )
    checkpoint_interval: Annotated[int, Field(ge=1)] | None = Field(
        description="steps between checkpoints; blank: train.eval_interval"
    )
    keep_checkpoints: int = Field(
        ge=2, description="newest checkpoints that are kept, besides the best model"
    )
    keep_every: Annotated[int, Field(ge=1)] | None = Field(
        description="steps between checkpoints that are kept for good; blank: none"
    )


BASELINES = ("uniform", "unigram", "bigram", "trigram", "kneser-ney", "xz")


def _check_models(key: str, names: list[str]) -> list[str]:
    """Raise ValueError unless each name can be that of a DVC stage, of a file, and an argument in a shell."""
    for name in names:
        folder = PurePosixPath(name)
        if not name.isprintable() or any(character in name for character in "'@\\"):
            raise ValueError(
                f"{key} = {name!r}: DVC cannot name a stage so; copy or download that model into a folder "
                "without ' @ \\ in its name"
            )
        if str(folder) != name or ".." in folder.parts:
            raise ValueError(f"{key} = {name!r}: name a folder without .. and ./ and without a / at its end")
        if folder.parts[:2] == ("results", "model"):
            raise ValueError(f"{key} = {name!r}: the trained model is evaluated anyway; leave it out")
        if names.count(name) > 1:
            raise ValueError(f"{key} = {name!r}: named twice; leave one out")
    return names


class Baselines(Section):
    """what to compare the model with"""

    models: Annotated[list[str], Field(min_length=1)] = Field(
        description="uniform, unigram, bigram, trigram (interpolated), kneser-ney, xz; "
        "gpt2, a model's folder or hub name work too"
    )
    pretrained: list[str] = Field(
        description="only compared by `make baselines`, because they have to be downloaded first"
    )
    train_tokens: int = Field(
        ge=2,
        description="n-grams are counted on the first so many training tokens, in up to 150 bytes for each",
    )
    eval_tokens: Annotated[int, Field(ge=2)] | None = Field(
        description="models are evaluated on the first so many tokens, n-grams and xz on all; blank: all"
    )

    @model_validator(mode="after")
    def _are_known(self) -> Baselines:
        for key, names in (("models", self.models), ("pretrained", self.pretrained)):
            for name in _check_models(key, names):
                known = [*BASELINES, *PUBLISHED]
                if "/" not in name and name not in known:
                    raise ValueError(f"{key} = {name!r}: not one of {', '.join(known)}{suggest(name, known)}")
        return self


class Depth(Section):
    """the curve of validation loss over depth"""

    stopping_thresholds: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        description="a model with learned stopping is also evaluated at these thresholds"
    )
    eval_iters: Annotated[int, Field(ge=1)] | None = Field(
        description="batches behind each point of the curve; blank: the whole validation split"
    )
    max: Repeats | None = Field(
        description="where the curve of a loop ends; blank: at twice the trained depth, or there if fixed"
    )

    def check_loop(self, trained_depth: int | None) -> None:
        """Raise UserError if the curve cannot go to `max`; `trained_depth` is None without a loop."""
        if self.max is not None and trained_depth is None:
            raise UserError(
                f"depth.max = {self.max}: the model has no loop; leave it blank, or set "
                "model.recurrent_shared_weights = true"
            )
        if self.max is not None and trained_depth is not None and self.max < trained_depth:
            raise UserError(
                f"depth.max = {self.max}: the model applies its block {trained_depth} times; set it to that "
                "or more, or leave it blank"
            )


class Zeroshot(Section):
    """tasks that the model was not trained for: `make eval-zeroshot`"""

    tasks: Annotated[list[Literal["hellaswag", "lambada", "wikitext2"]], Field(min_length=1)] = Field(
        description="hellaswag, lambada, wikitext2"
    )
    models: list[str] = Field(
        description="evaluated besides the trained model: gpt2, folders, names on the hub"
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        description="only the first so many samples of each task; blank: all"
    )
    batch_size: int = Field(ge=1, description="texts evaluated at once")

    @model_validator(mode="after")
    def _can_be_stages(self) -> Zeroshot:
        _check_models("models", self.models)
        return self


class Sample(Section):
    """text written by the model"""

    start: Annotated[str, Field(min_length=1)] = Field(
        description="the prompt; FILE:prompt.txt reads it from a file"
    )
    num_samples: int = Field(ge=1, description="decoded together, as one batch")
    max_new_tokens: int = Field(ge=1, description="tokens in each sample")
    temperature: float = Field(gt=0, description="below 1.0 more predictable, above 1.0 more random")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        description="choose among the k likeliest tokens; blank: all"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="choose among the likeliest tokens that make up this probability; blank: all"
    )
    greedy: bool = Field(description="always the likeliest token")
    seed: int = Field(ge=0, lt=2**63, description="same seed, same text")
    recurrent_depth: Repeats | None = Field(
        description="applications of a recurrent model's block; blank: as many as it was trained for"
    )


class Log(Section):
    """what is recorded while training"""

    log_interval: int = Field(ge=1, description="steps between rows of log.csv and plain progress lines")
    zeroshot_interval: Annotated[int, Field(ge=1)] | None = Field(
        description="steps between zero-shot evaluations in log.csv; blank: none"
    )
    health_interval: Annotated[int, Field(ge=1)] | None = Field(
        description="steps between measurements of each layer: norms, dead units and more; blank: none"
    )
    trackers: list[Literal["csv", "tensorboard", "wandb"]] = Field(
        description="where the figures go: csv (in any case), tensorboard, wandb (Weights & Biases)"
    )
    tensorboard_dir: Annotated[str, Field(min_length=1)] | None = Field(
        description="for tensorboard: a folder for all runs; blank: in the folder of each run in runs/"
    )
    wandb_project: Annotated[
        str, Field(max_length=128, pattern=r"^[^/\\#?%:\s]([^/\\#?%:]*[^/\\#?%:\s])?$")
    ] = Field(description="for wandb: the project; WANDB_PROJECT in the environment goes first")
    wandb_run_name: Annotated[str, Field(max_length=128, pattern=r"\S")] | None = Field(
        description="for wandb: the run's name; WANDB_NAME goes first; blank: the dataset and the run's key"
    )

    def check(self) -> None:
        """Raise UserError for what this machine lacks."""
        if "wandb" in self.trackers and importlib.util.find_spec("wandb") is None:
            raise UserError("log.trackers = [wandb]: it is not installed; pip install wandb, or leave it out")
        folder = Path(self.tensorboard_dir or ".")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"log.tensorboard_dir = {folder}: not a folder; name another, or leave it blank")


class Params(Section):
    """The content of params.yaml."""

    data: Data
    tokenizer: Tokenizer
    model: Model
    train: Train
    runtime: Runtime
    baselines: Baselines
    depth: Depth
    zeroshot: Zeroshot
    sample: Sample
    log: Log

    def check_sections(self) -> None:
        """Raise UserError for values that are valid in their own sections but contradict each other."""
        init_from, depth = self.train.init_from, self.sample.recurrent_depth
        if init_from in PUBLISHED and not Path(init_from).exists():  # its shape is known without a download
            check_start(self.model, PUBLISHED[init_from].config, init_from)
        if depth is not None and not self.model.loops:
            raise UserError(
                f"sample.recurrent_depth = {depth}: the model has no loop; leave it blank, or set "
                "model.recurrent_shared_weights = true"
            )
        self.depth.check_loop(self.model.loop_depth if self.model.loops else None)
        self.log.check()

    def with_overrides(self, overrides: Sequence[str]) -> Params:
        """These parameters with `section.key=value` overrides, as `dvc exp run -S` applies them.

        Raises UserError for an unknown name or an invalid value.
        """
        values = self.model_dump()
        for override in overrides:
            name, equals, text = override.partition("=")
            names = list(known_names(Params))
            section, _, key = name.partition(".")
            if not equals or not key:
                raise UserError(f"-S {override}: expected section.key=value, such as train.max_iters=100")
            if name not in names:
                raise UserError(f"-S {override}: unknown parameter {name}{suggest(name, names)}")
            value = _override(text)
            is_text = Params.model_fields[section].annotation.model_fields[key].annotation is str  # type: ignore[union-attr]
            values[section][key] = text if is_text and not isinstance(value, str) else value
        return validate(Params, values, f"-S {' '.join(overrides)}" if overrides else PARAMS_FILE)


def _override(text: str) -> Any:
    """The value of an override: YAML, or the text itself if it is none."""
    try:
        return parse_yaml(text) if text else None
    except UserError:
        return text


def params_or_defaults(overrides: Sequence[str] = ()) -> Params:
    """The parameters of the project in this folder; outside of a project the defaults, which come along."""
    in_project = PARAMS_FILE.exists() or Path("dvc.yaml").exists()
    return load_params(overrides, PARAMS_FILE if in_project else DEFAULTS_FILE)


def load_params(overrides: Sequence[str] = (), path: Path = PARAMS_FILE) -> Params:
    """The parameters in a YAML file, and `section.key=value` overrides. Raises UserError."""
    return validate(Params, read_yaml(path), path).with_overrides(overrides)
