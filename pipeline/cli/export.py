"""Write a model in another program's format."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, RecurrentDepth
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import DEPTH_PICTURE, EXPORT, METRICS, MODEL, NANOGPT_EXPORT, RECORD
from pipeline.corpus.sources import META_FILE
from pipeline.evaluate.comparison import baseline_files
from pipeline.model.load import load_model
from pipeline.report.model_card import TAG, Training, model_card, read_training
from pipeline.report.png import drawn_from
from pipeline.storage.checksums import MANIFEST_FILE, write_manifest
from pipeline.storage.files import check_room_beside, replacing_folder, write_json, write_text
from pipeline.storage.lock import writing
from pipeline.tokens.nanogpt_ids import write_meta
from pipeline.tokens.tokenizers import CharTokenizer, Tokenizer, gpt2_tokenizer
from pipeline.weights.gpt2 import TOKENIZER_CONFIG_FILE, save_gpt2, to_gpt2, tokenizer_config
from pipeline.weights.hub_models import CARD_FILE, EXPORTED, GENERATION_FILE, PICTURE_FILE
from pipeline.weights.nanogpt_checkpoint import CHECKPOINT_FILE, is_written, write_checkpoint
from pipeline.weights.open import GPT2_VOCABULARIES, StoredModel, open_trained


class Format(StrEnum):
    """The formats that can be written."""

    TRANSFORMERS = "transformers"
    NANOGPT = "nanogpt"


def main(
    model: ModelName = str(MODEL),
    format: Annotated[
        Format,
        typer.Option(help="transformers: a GPT2LMHeadModel; nanogpt: a ckpt.pt for nanoGPT's sample.py."),
    ] = Format.TRANSFORMERS,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder to write, {EXPORT} or {NANOGPT_EXPORT} by default; an earlier export there is "
            "replaced.",
            show_default=False,
        ),
    ] = None,
    recurrent_depth: RecurrentDepth = None,
) -> None:
    """Write a model for transformers, with its tokenizer and a model card, or for nanoGPT."""
    write, is_export, default = FORMATS[format]
    folder = out or default
    _check_replaceable(folder, is_export)
    stored = open_trained(model)
    with writing(folder):
        _check_replaceable(folder, is_export)  # another process may have written it meanwhile
        with replacing_folder(folder) as temporary:
            message = write(stored, stored.tokenizer(), recurrent_depth, temporary, folder)
            write_manifest(temporary)
    print(message)


def _check_replaceable(folder: Path, is_export: Callable[[Path], bool]) -> None:
    """Raise UserError unless nothing is at `folder`, or an earlier export."""
    if folder.exists() and not (folder.is_dir() and is_export(folder)):
        raise UserError(f"--out {folder}: exists and is not an export; name a new folder")
    check_room_beside(folder, {*EXPORTED, CHECKPOINT_FILE, META_FILE})


def _write_transformers(
    stored: StoredModel, tokenizer: Tokenizer, recurrent_depth: int | None, folder: Path, out: Path
) -> str:
    config, training, picture = stored.config, None, None
    if stored.folder.resolve() == MODEL.resolve():  # the training of other models is unknown
        training = _training()
        picture = DEPTH_PICTURE if drawn_from(DEPTH_PICTURE) == stored.sha256 else None
    values, tensors = to_gpt2(
        load_model(stored).state_dict(), config, recurrent_depth, tokenizer.vocab_size, tokenizer.end_of_text
    )
    num_params = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(
        config, tokenizer, num_params, values["n_layer"], training, PICTURE_FILE if picture else None
    )
    save_gpt2(values, tensors, folder)
    write_json(folder / GENERATION_FILE, {name: values[name] for name in ("bos_token_id", "eos_token_id")})
    tokenizer.save(folder)
    write_json(folder / TOKENIZER_CONFIG_FILE, tokenizer_config(tokenizer, config.block_size))
    write_text(folder / CARD_FILE, card)
    if picture:
        shutil.copyfile(picture, folder / PICTURE_FILE)
    return f"{out}: GPT2LMHeadModel with {values['n_layer']} layers; from_pretrained({str(out)!r}) loads it"


def _training() -> Training | None:
    """What is known of the training of the model in results/. Raises UserError if that is in doubt."""
    if not METRICS.exists() and not RECORD.exists():
        return None  # the model was put there by its user
    evaluated = baseline_files(load_params()).values()
    return read_training(RECORD, METRICS, evaluated)


def _is_transformers_export(folder: Path) -> bool:
    """Whether the folder is empty or an earlier export, so that it may be replaced."""
    names = {path.name for path in folder.iterdir()}
    card = folder / CARD_FILE
    return not names or (names <= set(EXPORTED) and card.exists() and TAG in card.read_text(encoding="utf-8"))


def _write_nanogpt(
    stored: StoredModel, tokenizer: Tokenizer, recurrent_depth: int | None, folder: Path, out: Path
) -> str:
    _check_decodable(tokenizer, stored.name)
    dataset, absolute = out.resolve().name, out.resolve()
    tensors, checkpoint = load_model(stored).state_dict(), folder / CHECKPOINT_FILE
    n_layer = write_checkpoint(
        tensors, stored.config, tokenizer.vocab_size, dataset, checkpoint, recurrent_depth
    )
    lines = [f"{out}: nanoGPT's GPT with {n_layer} layers. Run in nanoGPT's folder:"]
    if isinstance(tokenizer, CharTokenizer):
        write_meta(tokenizer, folder / META_FILE)
        lines.append(f"  mkdir -p {shlex.quote(f'data/{dataset}')}")
        lines.append(f"  cp {shlex.quote(str(absolute / META_FILE))} {shlex.quote(f'data/{dataset}/')}")
    lines.append(f"  python sample.py {shlex.quote(f'--out_dir={absolute}')}     (on a CPU: --device=cpu)")
    if stored.config.activation == "gelu_new":
        lines.append(
            "note: nanoGPT uses the exact GELU and this model an approximation, so logits differ a little"
        )
    return "\n".join(lines)


def _is_nanogpt_export(folder: Path) -> bool:
    """Whether the folder is empty or an earlier export, so that it may be replaced."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    return CHECKPOINT_FILE in names <= {CHECKPOINT_FILE, META_FILE, MANIFEST_FILE} and is_written(
        folder / CHECKPOINT_FILE
    )


def _check_decodable(tokenizer: Tokenizer, model: str) -> None:
    """Raise UserError unless nanoGPT's sample.py can decode the ids."""
    if isinstance(tokenizer, CharTokenizer):
        return
    if tokenizer.vocab_size not in GPT2_VOCABULARIES or tokenizer.vocabulary != gpt2_tokenizer().vocabulary:
        raise UserError(
            f"--model {model}: its tokens are neither characters nor GPT-2's, and sample.py decodes nothing "
            "else; train with tokenizer.name = char or gpt2"
        )


Write = Callable[[StoredModel, Tokenizer, int | None, Path, Path], str]
FORMATS: dict[Format, tuple[Write, Callable[[Path], bool], Path]] = {
    Format.TRANSFORMERS: (_write_transformers, _is_transformers_export, EXPORT),
    Format.NANOGPT: (_write_nanogpt, _is_nanogpt_export, NANOGPT_EXPORT),
}
