"""Read dataset.yaml (where a corpus comes from, how it is split) and fill data/<dataset>/raw/ from it."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.config.errors import UserError
from pipeline.config.paths import original_project
from pipeline.config.presets import yaml_to_write
from pipeline.config.reading import check_file
from pipeline.config.validation import COMMIT, Section, Sha256, read_yaml, suggest, validate
from pipeline.corpus import hub_datasets, pydocs
from pipeline.corpus.distinct import Distinct
from pipeline.corpus.documents import EXTENSIONS, corpus_files, count_documents, write_jsonl, write_parquet
from pipeline.corpus.fetch import download_folder, fetch
from pipeline.corpus.formats import is_plain_text, read_parts
from pipeline.corpus.progress import counted, progress
from pipeline.storage.checksums import MANIFEST_FILE, damage, read_manifest, sha256_file, write_manifest
from pipeline.storage.files import write_text
from pipeline.storage.machine import check_disk
from pipeline.storage.resuming import KEY_FILE, PROGRESS_FILE, resuming_folder

NonEmpty = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

IDS_FILES = ("train.bin", "val.bin")  # written by nanoGPT's prepare.py
META_FILE = "meta.pkl"

SPLIT_SEED = 2357  # the seed that nanoGPT's prepare.py splits OpenWebText with


class TextSource(Section):
    """A source that fills raw/ with files that pipeline.corpus.documents reads.

    `write` may find what an interrupted call for the same source left, and keeps what is finished of it.
    """

    def contents(self, raw: Path) -> str:
        """The amount of text in `raw`, for a message: documents and megabytes."""
        return _amount(count_documents(raw), "document", corpus_files(raw))


class PydocsSource(TextSource):
    """The documentation of the running Python (see pipeline.corpus.pydocs)."""

    kind: Literal["pydocs"]

    def write(self, folder: Path) -> None:
        records = ({"name": name, "text": text} for name, text in pydocs.documents())
        write_jsonl(folder / "documents.jsonl", records)


class StdlibSource(TextSource):
    """The source code of the running Python's standard library (see pipeline.corpus.pydocs)."""

    kind: Literal["stdlib"]

    def write(self, folder: Path) -> None:
        records = ({"name": name, "text": text} for name, text in pydocs.modules())
        write_jsonl(folder / "documents.jsonl", records)


class UrlSource(TextSource):
    """One file at a URL, verified by checksum; .jsonl and .parquet files hold their text in `text`."""

    kind: Literal["url"]
    url: NonEmpty
    sha256: Sha256

    @field_validator("url")
    @classmethod
    def _is_readable(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.path.endswith(EXTENSIONS):
            raise ValueError(f"{url!r} must begin with http(s):// and end in {_either(EXTENSIONS)}")
        return url

    def write(self, folder: Path) -> None:
        fetch(self.url, self.sha256, folder)


class HuggingFaceSource(TextSource):
    """One split of a data set on the Hugging Face hub, or of a local folder that `datasets` can load."""

    kind: Literal["huggingface"]
    repository: NonEmpty
    config: str | None = None
    split: NonEmpty
    revision: NonEmpty = Field(description="a commit, so that the text never changes")
    text_column: NonEmpty
    documents: PositiveInt | None = Field(default=None, description="how many there are, if that is known")

    def write(self, folder: Path) -> None:
        hub_datasets.write_documents(
            self.repository,
            self.config,
            self.split,
            self.revision,
            self.text_column,
            folder,
            self.documents,
        )
        if self.documents is not None and any(folder.glob("*.parquet")):  # write_raw refuses an empty one
            found = count_documents(folder)
            if found != self.documents:
                if not COMMIT.fullmatch(self.revision):  # what else it names may have other files next time
                    for part in folder.iterdir():
                        part.unlink()
                raise UserError(
                    f"source.documents = {self.documents}: {self.repository} at {self.revision} has {found}; "
                    "name a complete revision, or correct the number in dataset.yaml"
                )


class UserFile(Section):
    path: NonEmpty = Field(description="of a file, or a URL")
    sha256: Sha256
    name: NonEmpty | None = Field(default=None, description="of the file, if its URL does not end with it")
    encoding: NonEmpty | None = Field(default=None, description="of the text that is not UTF-8")

    def unchanged(self) -> Path:
        """The file's path. Raises UserError if the file is missing or has changed."""
        if is_url(self.path):
            return fetch(self.path, self.sha256, download_folder(self.path), self.name)
        path = Path(self.path)
        if not path.exists():  # in a copy of the project, for an experiment, without files that git ignores
            path = original_project() / path
        check_file(path, missing="put it back or run `make train-on` again")
        if sha256_file(path) != self.sha256:
            raise UserError(f"{path}: changed since dataset.yaml was made; run `make train-on` again")
        return path


class FilesSource(TextSource):
    """The user's own files, of any kind in pipeline.corpus.formats.

    Those with fields or columns hold their text in `text_column`. Documents that are empty, or the same as an
    earlier one, are left out.
    """

    kind: Literal["files"]
    paths: Annotated[list[UserFile], Field(min_length=1)]
    text_column: NonEmpty = "text"
    characters: PositiveInt | None = Field(default=None, description="how many there are, if that is known")

    def write(self, folder: Path) -> None:
        sources = [file.unchanged() for file in self.paths]
        check_disk(folder, sum(source.stat().st_size for source in sources), "your files")
        distinct = Distinct()
        with progress("copy", "B", sum(source.stat().st_size for source in sources)) as advance:
            for number, source in enumerate(sources):
                parts = read_parts(source, self.text_column, self.paths[number].encoding, advance)
                for part, (plain, documents) in enumerate(parts):
                    name = f"{number:05d}-{safe_name(source.stem)}"
                    name += "" if plain == source else f"-{part:05d}"
                    _write_new(documents, plain, folder / name, distinct)
        if distinct.left_out():
            print(distinct.left_out())


def _write_new(documents: Iterator[Iterator[str]], plain: Path, target: Path, distinct: Distinct) -> None:
    """Write the new ones of a file's documents as a file that pipeline.corpus.documents reads, if any are."""
    if is_plain_text(plain):
        if any(distinct.is_new(document) for document in documents):
            shutil.copyfile(plain, f"{target}.txt")
        return
    texts = ("".join(document) for document in documents)
    new = (text for text in texts if distinct.is_new([text]))
    for first in new:
        if plain.suffix.lower() == ".parquet":
            write_parquet(Path(f"{target}.parquet"), chain([first], new))
        else:
            write_jsonl(Path(f"{target}.jsonl"), ({"text": text} for text in chain([first], new)))


class NanoGPTSource(Section):
    """Token ids that nanoGPT prepared: ids of the characters in `meta`, or GPT-2's ids without `meta`."""

    kind: Literal["nanogpt"]
    train: UserFile
    val: UserFile
    meta: UserFile | None = None

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer.name that these ids need."""
        return "gpt2" if self.meta is None else "char"

    def write(self, folder: Path) -> None:
        for file, name in zip((self.train, self.val, self.meta), (*IDS_FILES, META_FILE), strict=True):
            if file is not None:
                shutil.copyfile(file.unchanged(), folder / name)

    def contents(self, raw: Path) -> str:
        paths = [raw / name for name in IDS_FILES]
        return _amount(sum(path.stat().st_size for path in paths) // 2, "token", paths)  # 16 bits each


class TailSplit(Section):
    """The last `fraction` of the corpus is the validation split."""

    by: Literal["tail"]
    fraction: Share


class DocumentSplit(Section):
    """A random `fraction` of the documents, drawn with `seed`, is the validation split."""

    by: Literal["documents"]
    fraction: Share
    seed: int = Field(ge=0, lt=2**63)


class GivenSplit(Section):
    """The source is already divided into a training and a validation split."""

    by: Literal["source"]


Source = Annotated[
    PydocsSource | StdlibSource | UrlSource | HuggingFaceSource | FilesSource | NanoGPTSource,
    Field(discriminator="kind"),
]
Split = Annotated[TailSplit | DocumentSplit | GivenSplit, Field(discriminator="by")]


class DatasetSpec(Section):
    """The content of a dataset.yaml."""

    description: str = ""
    published: dict[str, float] = Field(
        default={}, description="validation losses that others report, by model"
    )
    source: Source
    split: Split
    short_text: dict[str, int | str] = Field(
        default={}, description="parameters that `train-on` set because the text is short, by dotted name"
    )

    @model_validator(mode="after")
    def _split_suits_source(self) -> DatasetSpec:
        if (self.source.kind == "nanogpt") != (self.split.by == "source"):
            raise ValueError(
                f"split.by = {self.split.by} contradicts source.kind = {self.source.kind}; use `by: source` "
                "for nanogpt, and `by: documents` or `by: tail` for text"
            )
        return self


def load_spec(dataset: str, root: Path = Path("data")) -> DatasetSpec:
    """Read data/<dataset>/dataset.yaml. Raises UserError if it is missing or invalid."""
    path = root / dataset / "dataset.yaml"
    if not path.is_file():
        known = sorted(found.parent.name for found in root.glob("*/dataset.yaml"))
        the_datasets = ", ".join(known) or "none"
        raise UserError(
            f"data.dataset = {dataset}: no {path}{suggest(dataset, known)}; "
            f"the datasets are {the_datasets}; make one with `make train-on TEXT=...`"
        )
    return validate(DatasetSpec, read_yaml(path), path)


def write_spec(spec: DatasetSpec, path: Path) -> None:
    """Write a dataset.yaml atomically."""
    text = io.StringIO()
    yaml_to_write().dump(spec.model_dump(exclude_defaults=True), text)
    write_text(path, text.getvalue())


def write_raw(spec: DatasetSpec, folder: Path) -> None:
    """Replace the content of `folder` by the source's text files, or by nanoGPT's ids.

    The text files are in the formats that pipeline.corpus.documents reads. The old content stays until the
    new is complete. What an interrupted call finished is kept. Raises UserError if the source is missing,
    unreadable or changed. A manifest has the checksums of all files.
    """
    # The amount of text is only checked or told: correcting it keeps what was downloaded.
    with resuming_folder(
        folder, {"source": spec.source.model_dump(exclude={"documents", "characters"})}
    ) as partial:
        spec.source.write(partial)
        if {path.name for path in partial.iterdir()} == {KEY_FILE}:
            raise UserError(f"source.kind = {spec.source.kind}: no documents; correct source in dataset.yaml")
        write_manifest(partial, leave_out=[KEY_FILE, PROGRESS_FILE])


def check_raw(raw: Path) -> None:
    """Raise UserError if the files in `raw` are not those that `write_raw` put there.

    Without a manifest, the user put them there, and anything will do.
    """
    if not (raw / MANIFEST_FILE).exists():
        return
    problem = damage(raw)
    read = {path.name for path in raw.iterdir() if path.suffix in EXTENSIONS or path.name in IDS_FILES}
    more = () if problem else read - {*read_manifest(raw)}
    if problem or more:
        raise UserError(
            f"{raw}/{problem or f'{min(more)}: not of this dataset'}; `dvc repro -f -s download` writes it "
            "again, and `make train-on TEXT=...` makes a dataset of your own text"
        )


def _amount(number: int, what: str, paths: Sequence[Path]) -> str:
    return f"{counted(number, what)}, {sum(path.stat().st_size for path in paths) / 1e6:,.1f} MB"


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def safe_name(name: str) -> str:
    """`name` changed to a file or folder name that never needs quotes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "text"


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
