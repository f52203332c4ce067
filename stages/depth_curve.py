"""Draw validation loss over depth: results/depth.csv and results/depth.png."""

from __future__ import annotations

import json

from tqdm import tqdm

from pipeline.data.batches import check_fits, count_batches, evaluation_windows
from pipeline.data.shards import open_split
from pipeline.data.tokenizers import load_tokenizer
from pipeline.device import use_device
from pipeline.evaluate.baselines import file_name
from pipeline.evaluate.depth import Baseline, draw, write_table
from pipeline.evaluate.loss import evaluate_by_depth
from pipeline.model.saved import load_model
from pipeline.params import load_params
from pipeline.paths import BASELINES, DEPTH_CURVE, DEPTH_PICTURE, MODEL, tokens_folder
from stages.command import Overrides, run


def main(overrides: Overrides = None) -> None:
    """Read the trained model after 1, 2, … all of its layers, on the validation split."""
    params = load_params(overrides or [])
    device = use_device(params.runtime)
    model, tokenizer = load_model(MODEL, device), load_tokenizer(MODEL)
    val = open_split(tokens_folder(params), "val")
    check_fits(val, model.block_size, "val")
    which = (val, model.block_size, params.train.batch_size, params.depth.eval_iters)
    windows, total = evaluation_windows(*which), count_batches(*which)
    progress = tqdm(windows, desc="depth curve", total=total, unit="batch", disable=None)
    curve = evaluate_by_depth(model, progress, tokenizer.token_bytes, device)
    baselines = []
    for name in params.baselines.models:
        path = BASELINES / file_name(name)
        if path.exists():
            baselines.append(Baseline(name, json.loads(path.read_text(encoding="utf-8"))["val_bpb"]))
    write_table(DEPTH_CURVE, curve)
    title = f"{params.data.dataset} ({params.tokenizer.name} tokens), {model.num_params():,} parameters"
    draw(DEPTH_PICTURE, curve, baselines, title)
    print(f"{DEPTH_CURVE}: the curve\n{DEPTH_PICTURE}: the picture")


if __name__ == "__main__":
    run(main)
