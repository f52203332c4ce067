"""The model card of an exported model, its README.md: architecture, training data, results and use.

The format is the hub's, https://huggingface.co/docs/hub/model-cards: YAML for machines, then Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model import GPTConfig, Model
from pipeline.config.params import BASELINES
from pipeline.corpus.sources import load_spec
from pipeline.evaluate.baselines import read_figures
from pipeline.evaluate.comparison import OURS, read_results, rows
from pipeline.model.size import model_size
from pipeline.report.comparison import as_markdown
from pipeline.report.tables import markdown_table
from pipeline.tokens.shards import MANIFEST_FILE, Manifest, load_manifest
from pipeline.tokens.tokenizers import Tokenizer

TAG = "gpt-pipeline"
NO_FOLDERS = ("scratch", OURS, *BASELINES)  # names of models that are not folders
OF_DECAY = ("warmup_iters", "lr_decay_iters", "min_lr", "cooldown_share")  # unused without decay_lr
OF_MUON = ("muon_learning_rate", "embedding_learning_rate", "muon_momentum")  # unused with AdamW alone

USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # the folder of this file, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
ids = tokenizer("\\n", return_tensors="pt").input_ids
ids = model.generate(ids, do_sample=True, max_new_tokens={max_new_tokens})
print(tokenizer.decode(ids[0]))
```

Or with gpt-pipeline: `make sample MODEL=<folder or name>`.
"""


@dataclass(frozen=True)
class TrainedOn:
    """The dataset of a run, known only if its files have not changed since."""

    name: str
    description: str  # empty for the user's own files, whose names are private
    manifest: Manifest
    comparison: str  # a Markdown table of all models evaluated on its validation text


@dataclass(frozen=True)
class Training:
    """What is known of the run that trained a model."""

    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]  # the run's `train` section
    base_model: str | None  # the repository on the hub that training started from
    data: TrainedOn | None


def read_training(record: Path, metrics_file: Path, evaluated: Iterable[Path]) -> Training:
    """Read what is known of the training run that wrote `metrics_file` and the model in results/.

    The parameters are those that the run recorded, because params.yaml may have changed since. `evaluated`
    are the result files of the baselines. Raises UserError unless `record` says that metrics and model
    belong together.
    """
    run, metrics = read_results(record, metrics_file)
    settings = run["train"]
    start = run.get("start", {"name": "unknown", "repository": None})
    name = start["name"] if start["repository"] or start["name"] in NO_FOLDERS else "a local model"
    unused = [*(() if settings["decay_lr"] else OF_DECAY)]
    unused += () if settings["optimizer"] == "muon" else OF_MUON
    return Training(
        metrics,
        {key: settings[key] for key in settings if key not in unused} | {"init_from": name},
        start["repository"],
        _trained_on(
            Path(run["data"]),
            [*(read_figures(path) for path in evaluated if path.exists()), metrics],
            metrics,
        ),
    )


def _trained_on(
    tokens_folder: Path, results: Iterable[dict[str, Any]], metrics: Mapping[str, Any]
) -> TrainedOn | None:
    if not (tokens_folder / MANIFEST_FILE).exists():
        return None
    manifest = load_manifest(tokens_folder)
    if manifest.fingerprint != metrics.get("data"):
        return None
    dataset = tokens_folder.parent
    table = [
        replace(row, name=_shown(row.name))
        for row in rows(results, manifest.fingerprint, manifest.val.tokens - 1, {})
    ]
    return TrainedOn(
        dataset.name,
        _description(dataset),
        manifest,
        as_markdown(sorted(table, key=lambda row: row.val_bpb)),
    )


def _description(dataset: Path) -> str:
    if not (dataset / "dataset.yaml").exists():
        return ""
    spec = load_spec(dataset.name, dataset.parent)
    return "" if spec.source.kind in ("files", "nanogpt") else spec.description


def _shown(model: str) -> str:
    """A model's name for publication; a name that may be a folder of the user's is replaced."""
    public = model in NO_FOLDERS or (model in PUBLISHED and not Path(model).exists())
    return model if public else "another model"


def model_card(
    config: GPTConfig,
    tokenizer: Tokenizer,
    exported_params: int,
    n_layer: int,
    training: Training | None = None,
    picture: str | None = None,
) -> str:
    """The text of README.md for a model exported with `n_layer` layers and `exported_params` parameters.

    `training` is None if nothing is known of the model's training. `picture` is the name of a picture of the
    validation loss by depth, in the same folder as the card.
    """
    data = training.data if training else None
    num_params = model_size(config).parameters
    parts = [
        f"---\n{_metadata(training)}\n---",
        _title(num_params, training),
        _introduction(config, tokenizer, num_params, exported_params, n_layer),
        USE.format(max_new_tokens=max(1, min(100, config.block_size - 1))).strip(),
        _model(config, tokenizer),
    ]
    if data:
        parts.append(_data(data))
    if training:
        parts += [_training(training), _results(training, config, n_layer)]
    if data:
        parts.append(f"All models on the same text:\n\n{data.comparison.strip()}")
    if picture:
        parts.append(f"![Validation loss by depth]({picture})")
    return "\n\n".join(parts) + "\n"


def _metadata(training: Training | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = training.data if training else None
    results = []
    if training and data:
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=data.name,
                dataset_name=f"{data.description or data.name} (validation split)",
                metric_type=metric,
                metric_name=name,
                metric_value=round(value, 4),
            )
            for metric, name, value in (
                ("loss", "nats per token", training.metrics["val_loss"]),
                ("perplexity", "per token", training.metrics["perplexity"]),
                ("bits_per_byte", "bits per byte", training.metrics["val_bpb"]),
            )
        ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", TAG],
        base_model=training.base_model if training else None,
        model_name=TAG if results else None,
        eval_results=results or None,
    )
    text: str = card.to_yaml()
    return text.strip()


def _title(num_params: int, training: Training | None) -> str:
    base_model, data = (training.base_model, training.data) if training else (None, None)
    origin = f", finetuned from {base_model}" if base_model else ", trained" if data else ""
    return f"# GPT-2 with {num_params:,} parameters{origin}{f' on {data.name}' if data else ''}"


def _introduction(
    config: GPTConfig, tokenizer: Tokenizer, num_params: int, exported_params: int, n_layer: int
) -> str:
    text = "A language model with GPT-2's architecture, exported by gpt-pipeline; `GPT2LMHeadModel` loads it."
    if config.loops:
        text += (
            f"\nIt was trained with a loop: one block, applied {config.loop_depth} times at inference. Here "
            f"the loop is unrolled: the model has {n_layer} layers."
        )
    if exported_params != num_params:
        reasons = {
            "the block of the loop is copied to each of its layers": config.loops,
            "missing biases are added as zeros": not config.bias,
            "embedding rows that pad the vocabulary are left out": tokenizer.vocab_size < config.vocab_size,
        }
        why = ", ".join(reason for reason, holds in reasons.items() if holds)
        text += f"\nThe model has {num_params:,} parameters, this export {exported_params:,}: {why}."
    return text


def _model(config: GPTConfig, tokenizer: Tokenizer) -> str:
    switches = dict(line.split(" = ", 1) for line in config.changed(*Model.model_fields))
    return "## Model\n\n" + _table(("parameter", "value"), {**switches, "vocab_size": tokenizer.vocab_size})


def _data(data: TrainedOn) -> str:
    cells = [("split", "tokens", "bytes of UTF-8")]
    for split, counted in (("train", data.manifest.train), ("val", data.manifest.val)):
        cells.append((split, f"{counted.tokens:,}", f"{counted.utf8_bytes:,}"))
    title = f"{data.name}: {data.description}" if data.description else data.name
    return f"## Data\n\n{title}.\n\n{markdown_table(cells, '<>>', padded=False)}"


def _training(training: Training) -> str:
    metrics = training.metrics
    done = (
        f"{metrics['steps']:,} steps, {metrics['tokens']:,} tokens, {metrics['seconds']:,.0f} seconds "
        f"on {metrics['device']}, PyTorch {metrics['torch']}."
    )
    table = "\n\n" + _table(("parameter", "value"), training.settings) if training.settings else ""
    return f"## Training\n\n{done}{table}"


def _results(training: Training, config: GPTConfig, n_layer: int) -> str:
    unrolled = config.prelude + config.loop_depth + config.coda
    note = f", with {unrolled} layers" if config.loops and n_layer != unrolled else ""
    figures = {
        "loss, nats per token": f"{training.metrics['val_loss']:.4f}",
        "perplexity per token": f"{training.metrics['perplexity']:,.2f}",
        "bits per byte": f"{training.metrics['val_bpb']:.4f}",
    }
    return f"## Results\n\n{_table((f'on the validation text{note}', ''), figures)}"


def _table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in rows.items()}
    return markdown_table([header, *values.items()], "<>", padded=False)
