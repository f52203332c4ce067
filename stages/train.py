"""Train a GPT on the active dataset's shards; after an interruption, the same command continues."""

from __future__ import annotations

import sys

from pipeline.config.command_line import Overrides
from pipeline.config.params import Params, load_params
from pipeline.config.paths import LIVE, LOG, METRICS, MODEL, RECORD, runs_folder, tokens_folder
from pipeline.distributed.launch import is_main, run_on_ranks
from pipeline.distributed.world import world
from pipeline.tokens.prompt import encode_prompt
from pipeline.tokens.shards import open_tokenizer
from pipeline.track.console import say
from pipeline.train.fit import fit
from pipeline.train.loop import Interrupted


def main(overrides: Overrides = None) -> None:
    """Train, then write the model, the log and the metrics to results/."""
    params = load_params(overrides or [])
    # Refuse a prompt that the sample stage cannot encode now, not after a long training.
    world().from_main(lambda: _check_prompt(params))
    try:
        fitted = fit(params, tokens_folder(params), runs_folder(), say, LIVE)
    except Interrupted as error:
        sys.exit(error.status)
    if not is_main():
        return
    fitted.publish(MODEL, LOG, METRICS, RECORD)
    loss, bpb, steps = fitted.metrics["val_loss"], fitted.metrics["val_bpb"], fitted.metrics["steps"]
    say(
        f"{METRICS}: val loss {loss:.4f} nats per token, {bpb:.4f} bits per byte, after {steps:,} steps",
        sys.stdout,
    )
    say(f"{LOG}: the curve\n{MODEL}: the {fitted.metrics['saved']} model", sys.stdout)


def _check_prompt(params: Params) -> None:
    encode_prompt(params.sample.start, open_tokenizer(tokens_folder(params)))


if __name__ == "__main__":
    run_on_ranks(main, "stages.train", nodes=True)
