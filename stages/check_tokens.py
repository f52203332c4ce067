"""Refuse a model, a prompt or a start that does not go with the tokens, before a trained model is removed."""

from __future__ import annotations

from pipeline.config.command_line import Overrides, run
from pipeline.config.params import load_params
from pipeline.config.paths import CHECKED_TOKENS, tokens_folder
from pipeline.storage.files import write_json
from pipeline.tokens.batches import check_fits
from pipeline.tokens.prompt import encode_prompt
from pipeline.tokens.shards import load_manifest, open_tokenizer
from pipeline.train.init_from import Start


def main(overrides: Overrides = None) -> None:
    """Check block_size, the prompt and the initial model against the tokens, which `check` cannot see yet.

    What is written says only which tokens were checked: stages that depend on it wait for this one, but are
    not out of date when it runs again.
    """
    params = load_params(overrides or [])
    folder = tokens_folder(params)
    manifest, tokenizer = load_manifest(folder), open_tokenizer(folder)
    check_fits(manifest.train.tokens, params.model.block_size, "train")
    check_fits(manifest.val.tokens, params.model.block_size, "val")
    encode_prompt(params.sample.start, tokenizer)
    Start(params, tokenizer, folder)
    write_json(CHECKED_TOKENS, {"data": manifest.fingerprint})


if __name__ == "__main__":
    run(main)
