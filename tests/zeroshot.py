"""Small files of the zero-shot tasks, and models that can read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.model.gpt import GPT
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import BPETokenizer, Tokenizer, train_bpe
from pipeline.weights.model_folder import save_config, save_weights
from tests import tiny

BLOCK_SIZE = 48  # too short for some of the samples

HELLASWAG: list[dict[str, Any]] = [
    {
        "activity_label": "Sailing",
        "ctx_a": f"The old ship sails {'over the sea ' * number}and a bird sings.",
        "ctx_b": second,
        "endings": [
            "the bird sinks.",
            "it sails under the sea.",
            "[step] They sing  a small song.",
            "né sea",
        ],
        "label": str(number % 4) if number % 2 else number % 4,  # the harness has seen both
    }
    for number, second in enumerate(["", "the Crew", "a [substeps] bird", "he", "it [title] then", "she", ""])
]
HELLASWAG[2]["ctx_a"] = "[header] How to sail [title] Find a ship. [step] A small one  sails. "
LAMBADA = [
    {"text": f"The sea {'was old, ' * number}and the small red bird sang under the {word}"}
    for number, word in enumerate(["ship", "sea", "bird.", "bird", "né\n", "old"])
]
WIKITEXT = " \n = The Sea = \n \n" + "".join(
    f" The ship @-@ {i} sails over the né sea . \n" for i in range(30)
)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def bpe() -> BPETokenizer:
    """A tokenizer that cuts these texts into pieces of words."""
    texts = [WIKITEXT, *(row["text"] for row in LAMBADA), *(row["ctx_a"] for row in HELLASWAG)]
    return train_bpe(texts, 290)


def model(tokenizer: Tokenizer, padding: int = 5, **changes: Any) -> GPT:
    """A model for the tokenizer's ids, and some more that it would like best."""
    gpt = tiny.model(vocab_size=tokenizer.vocab_size + padding, block_size=BLOCK_SIZE, **changes)
    gpt.embed.wte.weight.data[tokenizer.vocab_size :] *= 3
    return gpt


def save_model(folder: Path, tokenizer: Tokenizer, padding: int = 5, **changes: Any) -> Path:
    """The folder with that model."""
    folder.mkdir(parents=True)
    gpt, vocab_size = model(tokenizer, padding, **changes), tokenizer.vocab_size + padding
    save_config(tiny.config(vocab_size=vocab_size, block_size=BLOCK_SIZE, **changes), folder)
    save_weights(gpt.state_dict(), folder)
    tokenizer.save(folder)
    return folder
