"""Refuse what cannot work before DVC removes any output, and record the models and data it is about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.config.command_line import Overrides, run
from pipeline.config.errors import naming
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.model_rules import check_start
from pipeline.config.params import BASELINES, Params, load_params
from pipeline.config.paths import CHECKED, hashes_file
from pipeline.corpus.sources import load_spec
from pipeline.distributed.launch import processes
from pipeline.distributed.share import check_processes
from pipeline.storage.checksums import HashCache
from pipeline.storage.dvc_cache import set_aside_damaged
from pipeline.storage.files import replacing_folder, write_json
from pipeline.tokens.prompt import read_prompt
from pipeline.weights.identity import identity
from pipeline.weights.names import check_kept, check_name


def main(overrides: Overrides = None) -> None:
    """Check params.yaml and DVC's cache, and record the dataset and the models, so that DVC sees changes."""
    params = load_params(overrides or [])
    params.check_sections()
    load_spec(params.data.dataset)
    read_prompt(params.sample.start)
    check_processes(processes(nodes=True), params.runtime, params.train)
    with HashCache(hashes_file()) as hashes:
        set_aside_damaged(hashes.md5, say=lambda text: print(f"note: {text}", file=sys.stderr))
        _check_models(params, hashes)
        if params.runtime.device not in ("auto", "cpu") or _is_large(params):
            _check_device(params)  # it imports PyTorch, which takes a second
        with replacing_folder(CHECKED) as folder:
            for name, values in _inputs(params, hashes).items():
                write_json(folder / f"{name}.json", values)


def _check_device(params: Params) -> None:
    """Raise UserError for a missing device, or a model that cannot fit into the memory."""
    from pipeline.runtime.device import use_device
    from pipeline.train.sizing import check_memory, expected_config

    device, config = use_device(params.runtime), expected_config(params)
    if config is not None:
        check_memory(params, config, device, note=lambda text: None)  # training will say it


def _is_large(params: Params) -> bool:
    """Whether the model may not fit into a small machine's memory."""
    model = params.model
    matrices = model.n_layer * model.n_embd**2 * max(1, model.moe_num_experts)
    return matrices + model.block_size * model.n_embd > 10**8


def _check_models(params: Params, hashes: HashCache) -> None:
    """Raise UserError for a missing model, or one that training cannot start from."""
    for name in params.baselines.models:
        if name not in BASELINES:
            with naming("baselines.models"):
                check_name(name)
                if Path(name).is_dir():
                    from pipeline.weights.open import open_model

                    open_model(name, hashes.sha256)
    tokenizer, start = params.tokenizer, params.train.init_from
    if tokenizer.model is not None and tokenizer.name == "pretrained":
        with naming("tokenizer.model"):
            check_kept(tokenizer.model)
            check_name(tokenizer.model)
    known = start in PUBLISHED and not Path(start).is_dir()  # check_sections has checked it
    if start not in ("scratch", "resume") and not known:
        from pipeline.weights.open import open_model

        with naming("train.init_from"):
            check_kept(start)
            check_start(params.model, open_model(start, hashes.sha256).config, start)


def _inputs(params: Params, hashes: HashCache) -> dict[str, Any]:
    """What stages depend on besides parameters and files, keyed by the name of the JSON file to write."""
    start, tokenizer = params.train.init_from, params.tokenizer
    inputs: dict[str, Any] = {
        "dataset": {"dataset": params.data.dataset},
        "tokenizer": {"tokenizer": tokenizer.name},
        "start": {"start": "scratch"},
    }
    if tokenizer.name == "pretrained" and tokenizer.model is not None:
        inputs["tokenizer"] = identity(tokenizer.model, hashes)
    if start not in ("scratch", "resume"):
        inputs["start"] = identity(start, hashes)
    for name in [*params.baselines.models, *params.baselines.pretrained, *params.zeroshot.models]:
        inputs[f"models/{name.lstrip('/')}"] = (
            {"model": name} if name in BASELINES else identity(name, hashes)
        )
    return inputs


if __name__ == "__main__":
    run(main)
