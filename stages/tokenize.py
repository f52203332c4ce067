"""Cut the raw text into tokens: shards, manifest and tokenizer in data/<dataset>/<tokenizer>/."""

from __future__ import annotations

from pipeline.config.command_line import Overrides, run
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import raw_folder, tokens_folder
from pipeline.corpus.sources import check_raw, load_spec
from pipeline.storage.lock import writing
from pipeline.tokens.write_shards import tokenize


def main(overrides: Overrides = None) -> None:
    """Encode the dataset's raw text into train and val shards."""
    params = load_params(overrides or [])
    raw, folder = raw_folder(params), tokens_folder(params)
    spec = load_spec(params.data.dataset)
    if not raw.is_dir():
        raise UserError(f"{raw}: missing dataset; run `dvc repro download` first")
    check_raw(raw)
    settings, pretrained = params.tokenizer, None
    if settings.name == "pretrained":
        from pipeline.weights.open import open_model  # imports PyTorch, in each process that encodes

        assert settings.model is not None, "params.yaml was checked"
        pretrained = open_model(settings.model).tokenizer()
    with writing(folder):
        manifest = tokenize(
            raw,
            spec.split,
            settings.name,
            settings.vocab_size,
            params.data.shard_tokens,
            folder,
            pretrained,
            params.runtime.workers,
            params.runtime.executor,
        )
    train, val = manifest.train.tokens, manifest.val.tokens
    print(
        f"{folder}: {train:,} train and {val:,} val tokens ({val / (train + val):.1%} for validation), "
        f"{manifest.vocab_size:,} in the vocabulary"
    )


if __name__ == "__main__":
    run(main)
