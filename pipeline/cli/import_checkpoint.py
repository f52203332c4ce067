"""Convert a checkpoint of nanoGPT or nano-gpt to a model folder to sample from, evaluate and finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file
from pipeline.model.build import padded_vocab_size
from pipeline.model.load import build_with, parameter_shapes
from pipeline.model.size import check_size
from pipeline.storage.checksums import MANIFEST_FILE, save_folder
from pipeline.storage.files import check_room_beside
from pipeline.storage.lock import writing
from pipeline.tokens.nanogpt_ids import read_meta
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer, gpt2_tokenizer
from pipeline.weights.model_folder import CONFIG_FILE, WEIGHTS_FILE, save_config, save_weights, verified
from pipeline.weights.nanogpt_checkpoint import read_checkpoint
from pipeline.weights.open import GPT2_VOCABULARIES

IMPORTED = Path("saved/nanogpt")


def main(
    ckpt: Annotated[
        Path,
        typer.Argument(metavar="CKPT", help="The ckpt.pt of nanoGPT, or a checkpoint_*.bin of nano-gpt."),
    ],
    meta: Annotated[
        Path | None,
        typer.Option(
            help="The meta.pkl of nanoGPT's dataset; without one, GPT-2's vocabulary is used.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")] = IMPORTED,
) -> None:
    """Convert a checkpoint to a model folder with its tokenizer. Nothing in CKPT or meta.pkl is executed."""
    _check_new(out)
    for file in (ckpt, meta) if meta else (ckpt,):
        check_file(file)
        verified(file.parent, (file.name,))  # `make export` may have written it
    found = read_checkpoint(ckpt)
    check_size(found.config, len(found.tensors), ckpt)
    model = build_with(found.config, found.weights(parameter_shapes(found.config)))
    tokenizer = _tokenizer(ckpt, found.config.vocab_size, meta)

    def write(folder: Path) -> None:
        save_weights(model.state_dict(), folder)
        save_config(found.config, folder)
        tokenizer.save(folder)

    with writing(out):
        _check_new(out)  # another process may have written it meanwhile
        save_folder(out, write)
    print(f"{out}: {model.num_params() / 1e6:.2f}M parameters, {tokenizer.vocab_size:,} in the vocabulary")
    if found.config.recurrent_noise_mode != "none":
        print("note: here noise is added only in training; the fork also adds it in evaluation and sampling")
    print(f"next: make sample MODEL={out}, or make start-from MODEL={out} to finetune it")


def _check_new(out: Path) -> None:
    """Raise UserError unless `out` can be written without replacing anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder, or remove it")
    check_room_beside(out, {WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE, MANIFEST_FILE})


def _tokenizer(checkpoint: Path, rows: int, meta: Path | None) -> Tokenizer:
    """The tokenizer of a model whose vocabulary size, including padding, is `rows`."""
    if meta is not None:
        tokenizer = read_meta(meta)
        if rows not in (tokenizer.vocab_size, padded_vocab_size(tokenizer.vocab_size)):
            raise UserError(
                f"--meta {meta}: a vocabulary of {tokenizer.vocab_size}, but {checkpoint} has {rows}; name "
                "the meta.pkl of the data it was trained on"
            )
        return tokenizer
    if rows not in GPT2_VOCABULARIES:
        raise UserError(
            f"{checkpoint}: a vocabulary of {rows} is not GPT-2's; name the meta.pkl of the data it was "
            "trained on: --meta meta.pkl, or META=meta.pkl with make"
        )
    return gpt2_tokenizer()
