"""Write a model as a folder that Hugging Face's transformers loads: results/export/."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, RecurrentDepth, run
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import DEPTH_PICTURE, EXPORT, METRICS, MODEL, runs_folder
from pipeline.evaluate.comparison import evaluated
from pipeline.report.model_card import TAG, model_card, read_training
from pipeline.storage.files import check_room_beside, replacing_folder, write_json, write_text
from pipeline.weights.gpt2 import save_gpt2, to_gpt2
from pipeline.weights.hub_models import CARD_FILE, EXPORTED, GENERATION_FILE, PICTURE_FILE
from pipeline.weights.stored_model import open_model
from pipeline.weights.transformers_tokenizer import to_transformers


def main(
    model: ModelName = str(MODEL),
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")] = EXPORT,
    recurrent_depth: RecurrentDepth = None,
) -> None:
    """Turn a model into transformers' GPT2LMHeadModel, with its tokenizer and a model card."""
    if out.exists() and not _is_export(out):
        raise UserError(f"--out {out}: there is something else already; name a new folder")
    check_room_beside(out)
    stored = open_model(model)
    tokenizer, config = stored.tokenizer(), stored.config
    values, tensors = to_gpt2(
        stored.weights.read_all(), config, recurrent_depth, tokenizer.vocab_size, tokenizer.end_of_text
    )
    ends = {name: values[name] for name in ("bos_token_id", "eos_token_id")}
    training, picture = None, None
    if Path(model).resolve() == MODEL.resolve():  # of no other one is it known how it was trained
        known = evaluated(load_params()) if METRICS.exists() else []
        training = read_training(METRICS, runs_folder(), known)
        picture = DEPTH_PICTURE if DEPTH_PICTURE.exists() else None
    num_params = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(
        config, tokenizer, num_params, values["n_layer"], training, PICTURE_FILE if picture else None
    )
    with replacing_folder(out) as folder:
        save_gpt2(values, tensors, folder)
        write_json(folder / GENERATION_FILE, ends)
        for name, text in to_transformers(tokenizer, config.block_size).items():
            write_text(folder / name, text)
        write_text(folder / CARD_FILE, card)
        if picture:
            shutil.copyfile(picture, folder / PICTURE_FILE)
    print(f"{out}: GPT2LMHeadModel with {values['n_layer']} layers; from_pretrained({str(out)!r}) loads it")


def _is_export(folder: Path) -> bool:
    """Whether nothing is lost when the folder is replaced."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    card = folder / CARD_FILE
    return not names or (names <= set(EXPORTED) and card.exists() and TAG in card.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
