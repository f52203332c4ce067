"""Write a model as the ckpt.pt that nanoGPT's sample.py reads, and its meta.pkl: results/nanogpt/."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, RecurrentDepth, run
from pipeline.config.errors import UserError
from pipeline.config.paths import MODEL, RESULTS
from pipeline.corpus.sources import META_FILE
from pipeline.storage.files import check_room_beside, replacing_folder
from pipeline.tokens.nanogpt_ids import write_meta
from pipeline.tokens.tokenizers import CharTokenizer, Tokenizer, gpt2_tokenizer
from pipeline.weights.nanogpt_checkpoint import CHECKPOINT_FILE, is_written, write_checkpoint
from pipeline.weights.stored_model import GPT2_VOCABULARIES, open_model

EXPORT = RESULTS / "nanogpt"


def main(
    model: ModelName = str(MODEL),
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")] = EXPORT,
    recurrent_depth: RecurrentDepth = None,
) -> None:
    """Turn a model into nanoGPT's, and say how to sample from it there."""
    if out.exists() and not _is_export(out):
        raise UserError(f"--out {out}: there is something else already; name a new folder")
    check_room_beside(out)
    stored = open_model(model)
    tokenizer, config = stored.tokenizer(), stored.config
    _check_tokenizer(tokenizer, model)
    dataset = out.resolve().name
    with replacing_folder(out) as folder:
        n_layer = write_checkpoint(
            stored.weights.read_all(),
            config,
            tokenizer.vocab_size,
            dataset,
            folder / CHECKPOINT_FILE,
            recurrent_depth,
        )
        if isinstance(tokenizer, CharTokenizer):
            write_meta(tokenizer, folder / META_FILE)
    print(f"{out}: nanoGPT's GPT with {n_layer} layers. In nanoGPT's folder:")
    if isinstance(tokenizer, CharTokenizer):
        print(f"  mkdir -p {shlex.quote(f'data/{dataset}')}")
        print(f"  cp {shlex.quote(str(out.resolve() / META_FILE))} {shlex.quote(f'data/{dataset}/')}")
    print(f"  python sample.py {shlex.quote(f'--out_dir={out.resolve()}')}     (on a CPU: --device=cpu)")
    if config.activation == "gelu_new":
        print(
            "note: nanoGPT computes GELU exactly where this model approximates it; its logits differ a little"
        )


def _is_export(folder: Path) -> bool:
    """Whether nothing is lost when the folder is replaced."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    return CHECKPOINT_FILE in names <= {CHECKPOINT_FILE, META_FILE} and is_written(folder / CHECKPOINT_FILE)


def _check_tokenizer(tokenizer: Tokenizer, model: str) -> None:
    """Raise UserError unless sample.py can decode the ids."""
    if isinstance(tokenizer, CharTokenizer):
        return
    if tokenizer.vocab_size not in GPT2_VOCABULARIES or tokenizer.vocabulary != gpt2_tokenizer().vocabulary:
        raise UserError(
            f"--model {model}: its tokens are neither characters nor GPT-2's, and sample.py decodes nothing "
            "else; train with tokenizer.name = char or gpt2"
        )


if __name__ == "__main__":
    run(main)
