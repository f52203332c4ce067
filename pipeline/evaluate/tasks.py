"""Zero-shot tasks: where their data comes from, which text is scored, and the figures of a task.

The data is downloaded once per machine and verified by its checksum; a local file can be used instead.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file, parse_object
from pipeline.corpus.fetch import fetch
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.scoring import Group, Score, encode_pair, sliding_windows
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_text
from pipeline.tokens.tokenizers import Tokenizer


class Task(ABC):
    """A task's samples as a model's token ids: the groups to score, and how scores become figures."""

    name: ClassVar[str]
    unit: ClassVar[str]  # what a group is called in the progress bar
    running: ClassVar[str]  # the figure shown in the progress bar
    groups: Sequence[Group]
    samples: int

    @classmethod
    @abstractmethod
    def download(cls, folder: Path) -> Path:
        """The task's file in `folder`, downloaded if missing. Raises UserError if the download fails."""

    @abstractmethod
    def __init__(self, path: Path, tokenizer: Tokenizer, block_size: int, limit: int | None) -> None:
        """Read the first `limit` samples of a file, or all of them. Raises UserError for an invalid file."""

    @abstractmethod
    def tally(self, group: int, scores: Sequence[Score]) -> np.ndarray:
        """One group's contribution to the sums (2,) from which `figures` computes the figures."""

    @abstractmethod
    def figures(self, sums: np.ndarray, groups: int) -> dict[str, float]:
        """The task's figures, from the sums over `groups` groups."""


class HellaSwag(Task):
    """Choose the most likely of four endings: 10,042 tasks of the validation split (Zellers et al. 2019).

    `accuracy` compares the endings' log-likelihoods; `accuracy_norm` divides each by the ending's length in
    characters first. They are `acc` and `acc_norm` of lm-evaluation-harness, on the same text. The file is
    the official one, or an already cleaned one with the fields `ctx`, `endings` and `label`.
    """

    URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
    SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
    name, unit, running = "hellaswag", "tasks", "accuracy"

    @classmethod
    def download(cls, folder: Path) -> Path:
        return fetch(cls.URL, cls.SHA256, folder)

    def __init__(self, path: Path, tokenizer: Tokenizer, block_size: int, limit: int | None) -> None:
        tasks = [_hellaswag_task(row, where) for row, where in _rows(path, limit)]
        self.groups = []
        for context, endings, _ in tasks:
            pairs = [encode_pair(tokenizer, context, f" {ending}") for ending in endings]
            shared = pairs[0][0]
            assert all(ids == shared for ids, _ in pairs), "the context has the same ids before every ending"
            self.groups.append(Group(shared, [continuation for _, continuation in pairs]))
        self.samples = len(tasks)
        self._characters = [np.array([len(ending) for ending in endings]) for _, endings, _ in tasks]
        self._labels = [label for _, _, label in tasks]

    def tally(self, group: int, scores: Sequence[Score]) -> np.ndarray:
        log_probabilities = np.array([ending.log_probability for ending in scores])
        guesses = log_probabilities.argmax(), (log_probabilities / self._characters[group]).argmax()
        return np.array([guess == self._labels[group] for guess in guesses], dtype=np.float64)

    def figures(self, sums: np.ndarray, groups: int) -> dict[str, float]:
        right, right_norm = sums.tolist()
        return {"accuracy": right / groups, "accuracy_norm": right_norm / groups}


class Lambada(Task):
    """Predict the last word of 5,153 passages (Paperno et al. 2016), in OpenAI's version for GPT-2.

    `accuracy` is the share of words of which every token is the most likely one. `perplexity` is per word.
    """

    URL = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
    SHA256 = "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"
    name, unit, running = "lambada", "passages", "accuracy"

    @classmethod
    def download(cls, folder: Path) -> Path:
        return fetch(cls.URL, cls.SHA256, folder)

    def __init__(self, path: Path, tokenizer: Tokenizer, block_size: int, limit: int | None) -> None:
        self.groups = []
        for row, where in _rows(path, limit):
            passage, _, word = str(_field(row, "text", where)).rpartition(" ")
            if not word:
                raise UserError(f"{where}: text ends without a last word; repair the file")
            context, continuation = encode_pair(tokenizer, passage, f" {word}")
            self.groups.append(Group(context, [continuation]))
        self.samples = len(self.groups)

    def tally(self, group: int, scores: Sequence[Score]) -> np.ndarray:
        (word,) = scores
        return np.array([word.greedy, word.log_probability], dtype=np.float64)

    def figures(self, sums: np.ndarray, groups: int) -> dict[str, float]:
        right, log_probability = sums.tolist()
        return {
            "accuracy": right / groups,
            "perplexity": Evaluation(-log_probability, groups, 0).perplexity,
        }


class WikiText2(Task):
    """The raw test text of WikiText-2 (Merity et al. 2017), 4,358 lines, in sliding windows.

    A window has `block_size` tokens and predicts the last 512 of them, or half of them if `block_size` is
    below 1024 (see `sliding_windows`). Every token but the first is predicted. `perplexity` is per token.
    `word_perplexity` divides the same nats by the number of words, which white space separates, and
    `bits_per_byte` by the number of UTF-8 bytes: these two compare across tokenizers. A sample is a line.
    """

    REPOSITORY, CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
    REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
    SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    STRIDE = 512
    name, unit, running = "wikitext2", "windows", "perplexity"

    @classmethod
    def download(cls, folder: Path) -> Path:
        path = folder / "wiki.test.raw"
        if path.is_file() and sha256_file(path) == cls.SHA256:
            return path
        try:
            text = "".join(row or " \n" for row in cls._rows_of_the_hub())  # blank lines are empty rows there
        except UserError as error:
            raise UserError(f"{error}, or put WikiText-2's wiki.test.raw at {path}") from None
        actual = hashlib.sha256(text.encode()).hexdigest()
        if actual != cls.SHA256:
            raise UserError(
                f"{cls.REPOSITORY}, revision {cls.REVISION}: sha256 of the text is {actual}, expected "
                f"{cls.SHA256}; the text was not kept, get wiki.test.raw by other means and put it at {path}"
            )
        write_text(path, text)
        return path

    @classmethod
    def _rows_of_the_hub(cls) -> list[str]:
        from pyarrow import parquet

        from pipeline.corpus.hub_datasets import write_documents

        with tempfile.TemporaryDirectory() as folder:
            write_documents(cls.REPOSITORY, cls.CONFIG, "test", cls.REVISION, "text", Path(folder))
            rows: list[str] = parquet.read_table(folder)["text"].to_pylist()
            return rows

    def __init__(self, path: Path, tokenizer: Tokenizer, block_size: int, limit: int | None) -> None:
        if block_size < 2:
            raise UserError(
                f"model.block_size = {block_size}: sliding windows need at least 2 tokens; name another model"
            )
        lines = _lines(path, limit)
        text = "".join(lines)
        ids = tokenizer.encode(text)
        self.groups = sliding_windows(ids.tolist(), block_size, min(self.STRIDE, block_size // 2))
        if not self.groups:
            raise UserError(
                f"{path}: a single token leaves nothing to predict; name a longer file or raise the limit"
            )
        self.samples = len(lines)
        self._words = len(text.split())
        self._bytes = int(tokenizer.token_bytes[ids[1:]].sum())

    def tally(self, group: int, scores: Sequence[Score]) -> np.ndarray:
        (new,) = scores
        return np.array([-new.log_probability, len(self.groups[group].continuations[0])])

    def figures(self, sums: np.ndarray, groups: int) -> dict[str, float]:
        nats, tokens = sums.tolist()
        text = Evaluation(nats, tokens, self._bytes)
        return {
            "word_perplexity": Evaluation(nats, self._words, self._bytes).perplexity,
            "bits_per_byte": text.bits_per_byte,
            "perplexity": text.perplexity,
        }


def _hellaswag_task(row: dict[str, Any], where: str) -> tuple[str, list[str], int]:
    """Context, endings and the index of the right one, cleaned as in lm-evaluation-harness."""
    endings, label = _field(row, "endings", where), _field(row, "label", where)
    if not (isinstance(endings, list) and all(isinstance(ending, str) and ending for ending in endings)):
        raise UserError(f"{where}: endings = {endings!r} is not a list of texts; repair the file")
    if not (str(label).isdecimal() and int(label) < len(endings)):
        raise UserError(f"{where}: label = {label!r} is not the index of an ending; repair the file")
    if "activity_label" not in row:
        return str(_field(row, "ctx", where)), endings, int(label)
    activity, first, second = (str(_field(row, name, where)) for name in ("activity_label", "ctx_a", "ctx_b"))
    context = _without_markup(f"{activity}: {first} {second.capitalize()}")
    return context, [_without_markup(ending) for ending in endings], int(label)


def _without_markup(text: str) -> str:
    """Remove the bracketed marks for titles and steps that HellaSwag's texts from WikiHow have."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _rows(path: Path, limit: int | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the first `limit` objects of a JSON lines file, each with its place for error messages."""
    for number, line in enumerate(_lines(path, limit), start=1):
        where = f"{path}, line {number}"
        yield parse_object(line, where, "repair the file"), where


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise UserError(f"{where}: no field {name!r}, only {', '.join(row)}; name a file of this task")
    return row[name]


def _lines(path: Path, limit: int | None) -> list[str]:
    """The first `limit` lines of a file, with their line ends. Raises UserError if there are none."""
    check_file(path, missing="name a file of this task")
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = list(islice(file, limit))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; name a file of this task") from None
    if not lines:
        raise UserError(f"{path}: empty; name a file of this task")
    return lines
