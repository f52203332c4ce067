"""Take each ingredient out of the active recipe, or put one in: what that does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import Params, load_params
from pipeline.config.paths import RESULTS, runs_folder, tokens_folder
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text
from pipeline.track.console import say
from pipeline.train.fit import fit
from pipeline.train.loop import Interrupted

# What is done to the recipe, as overrides. One that changes nothing in the active parameters is left out.
CHANGES: dict[str, list[str]] = {
    "AdamW for all parameters": [
        "train.optimizer=adamw",
        "train.learning_rate=0.003",
        "train.weight_decay=0.1",
        "train.grad_clip=1.0",
        "train.beta1=0.9",
        "train.beta2=0.99",
    ],
    "one learning rate for AdamW's parameters": ["train.embedding_learning_rate=0.01"],
    "learned positions": ["model.position=learned"],
    "no QK-norm": ["model.qk_norm=false"],
    "GELU": ["model.activation=gelu"],
    "SwiGLU": ["model.activation=swiglu"],
    "no value embeddings": ["model.value_embeddings=false"],
    "output projection tied to the embedding": ["model.tie_word_embeddings=true"],
    "one key and value head": ["model.n_kv_head=1"],
    "as many key and value heads as query heads": ["model.n_kv_head="],
    "RMSNorm": ["model.norm=rmsnorm"],
    "logits capped at 15": ["model.logit_softcap=15.0"],
    "a cosine to zero": ["train.cooldown_share="],
    "gradients clipped at 1": ["train.grad_clip=1.0"],
    "weight decay 0.1": ["train.weight_decay=0.1"],
    "float32": ["train.dtype=float32"],
}


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each recipe.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 1,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only changes whose name has this.")] = "",
    overrides: Overrides = None,
) -> None:
    """Train the recipe in params.yaml, and with each change, for several seeds; finished runs are reused."""
    params = load_params(overrides or [])
    recipes = {"the recipe": params}
    for name, changes in CHANGES.items():
        changed = params.with_overrides(changes)
        if only in name and changed != params:
            recipes[name] = changed
    if len(recipes) == 1:
        raise UserError(f"--only '{only}': no change has this in its name; choose from {', '.join(CHANGES)}")
    measured: dict[str, list[dict[str, Any]]] = {}
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        measured[name] = []
        for seed in range(first_seed, first_seed + seeds):
            say(f"{number} of {len(recipes)}: {name}, seed {seed}")
            measured[name].append(_train(recipe.with_overrides([f"train.seed={seed}"])))
    table, figures = (RESULTS / f"bench-ablation-{params.data.dataset}.{kind}" for kind in ("md", "json"))
    report = markdown(measured)
    write_text(table, f"{report}\n")
    write_json(figures, {"seeds": list(range(first_seed, first_seed + seeds)), "runs": measured})
    print(f"{report}\n\n{table}: this table\n{figures}: the figures of every run")


def _train(params: Params) -> dict[str, Any]:
    try:
        metrics = fit(params, tokens_folder(params), runs_folder(), say).metrics
    except Interrupted as stopped:
        sys.exit(stopped.status)
    return {key: metrics[key] for key in ("val_loss", "params", "tokens_per_second")}


def markdown(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Mean losses, and differences to the first entry: paired by seed, with twice the standard error."""
    base, *_ = measured.values()
    cells = [("", "val loss", "difference", "±", "time of a step", "parameters")]
    for name, runs in measured.items():
        differences = [run["val_loss"] - other["val_loss"] for run, other in zip(runs, base, strict=True)]
        slower = mean(
            other["tokens_per_second"] / run["tokens_per_second"]
            for run, other in zip(runs, base, strict=True)
        )
        own = runs is base
        cells.append(
            (
                name,
                f"{mean(run['val_loss'] for run in runs):.4f}",
                "" if own else f"{mean(differences):+.4f}",
                "" if own else f"{2 * stdev(differences) / len(differences) ** 0.5:.4f}",
                "" if own else f"{slower:.2f}",
                f"{runs[0]['params']:,}",
            )
        )
    return markdown_table(cells, "<>>>>>")
