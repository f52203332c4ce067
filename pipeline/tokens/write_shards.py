"""Turn a corpus into shards: encode its two splits, write their tokens and a manifest."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from pydantic import NonNegativeInt

from pipeline.config.errors import UserError
from pipeline.config.validation import Section
from pipeline.corpus.documents import fingerprint, text_bytes
from pipeline.corpus.sources import META_FILE, GivenSplit, Split
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_text
from pipeline.storage.machine import check_disk
from pipeline.storage.resuming import PROGRESS_FILE, resuming_folder
from pipeline.tokens.encode import SPLITS, Corpus, EncodedPiece, IdFiles
from pipeline.tokens.parts import LargeCorpus, large_parts
from pipeline.tokens.shards import Manifest, MergesSample, ShardWriter, SplitManifest, SplitName, token_dtype
from pipeline.tokens.tokenizers import Tokenizer, load_tokenizer

LARGE_CORPUS = 1 << 26  # bytes of text from which on processes are started
TASKS = "tasks"  # what they encoded, until it is in shards
MAX_SHARDS = 10_000  # a folder of more files is of no use to anybody
BYTES_PER_TOKEN = 2
# Most texts have fewer characters to a token of GPT-2's, so they need more disk than these two say.
CHARACTERS_PER_TOKEN = 6
SECONDS_BETWEEN_RECORDS = 10.0


def tokenize(
    raw: Path,
    split: Split,
    tokenizer_name: str,
    vocab_size: int,
    shard_tokens: int,
    folder: Path,
    pretrained: Tokenizer | None = None,
    workers: int | None = None,
    executor: str = "local",
) -> Manifest:
    """Encode all of `raw` into `folder`, which is replaced only when everything is written.

    The tokenizer is `pretrained`, or the one called `tokenizer_name` if `pretrained` is None. In a corpus of
    several documents, the end-of-text id follows each. Ids that nanoGPT prepared are copied unchanged. After
    an interruption, a call for the same text and with the same arguments goes on where it ended.

    The text is encoded by `workers` threads, by default one for each CPU core; a corpus of LARGE_CORPUS by
    so many processes of `executor`. What they write does not depend on that.

    Raises UserError for text that cannot be read, for a split of fewer than two tokens, for ids of another
    tokenizer, and for shards so small that there would be more than MAX_SHARDS. Raises ChildProcessError if a
    process was killed; what others finished is kept.
    """
    corpus = _corpus(raw, split, executor)
    _check_number_of_shards(corpus.most_tokens, shard_tokens)
    source_sha256 = fingerprint(corpus.files)
    key = {
        "source_sha256": source_sha256,
        "meta": [sha256_file(path) for path in raw.glob(META_FILE)],
        "split": split.model_dump(),
        "tokenizer": [tokenizer_name, vocab_size, pretrained and _sha256(pretrained)],
        "shard_tokens": shard_tokens,
        "code": fingerprint(_code()),
    }
    letters = isinstance(corpus, IdFiles) or tokenizer_name in ("char", "byte")
    with resuming_folder(folder, key) as partial:
        needed = corpus.most_tokens / (1 if letters else CHARACTERS_PER_TOKEN) * BYTES_PER_TOKEN
        needed *= 2 if isinstance(corpus, LargeCorpus) else 1  # also as parts
        check_disk(folder, needed - sum(path.stat().st_size for path in partial.rglob("*.bin")), "its shards")
        try:
            writer = TokensWriter.resumed(partial, shard_tokens)
            if writer is None:
                tokenizer, merges = corpus.tokenizer(tokenizer_name, vocab_size, pretrained)
                writer = TokensWriter(partial, tokenizer, shard_tokens, source_sha256, merges)
            for parts in corpus.encoded(writer.tokenizer, writer.pieces, workers, partial / TASKS):
                writer.append(parts)
            manifest = writer.close()
            shutil.rmtree(partial / TASKS, ignore_errors=True)
            for name in SPLITS:
                if manifest.split(name).tokens < 2:
                    raise UserError(
                        f"{raw}: split.fraction leaves no token to predict in the {name} split ({corpus}); "
                        "change it in dataset.yaml or add text"
                    )
        except UserError:
            shutil.rmtree(partial)  # the next attempt would fail in the same way
            raise
    return manifest


class SplitWriter:
    """Writes one split's shards and counts what goes into them; it may go on after what is `written`."""

    def __init__(
        self,
        folder: Path,
        name: SplitName,
        tokenizer: Tokenizer,
        shard_tokens: int,
        written: SplitManifest | None = None,
    ) -> None:
        shards = written.shards if written else ()
        self._writer = ShardWriter(folder, name, token_dtype(tokenizer.vocab_size), shard_tokens, shards)
        self._documents = written.documents if written else 0
        self._utf8_bytes = written.utf8_bytes if written else 0

    def append(self, part: EncodedPiece) -> None:
        self._writer.append(part.ids)
        self._documents += part.documents
        self._utf8_bytes += part.utf8_bytes

    def sync(self) -> SplitManifest:
        """What is written and on disk."""
        shards = self._writer.sync()
        return SplitManifest(
            tokens=sum(shard.tokens for shard in shards),
            documents=self._documents,
            utf8_bytes=self._utf8_bytes,
            shards=shards,
        )

    def close(self) -> None:
        self._writer.close()


class Unfinished(Section):
    """How far a TokensWriter came: the first `pieces` pieces are in the shards of `manifest`."""

    pieces: NonNegativeInt
    manifest: Manifest


class TokensWriter:
    """Writes tokenizer, shards and manifest, and now and then a record of what is on disk.

    After an interruption, `resumed` goes on from the record.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        shard_tokens: int,
        source_sha256: str,
        merges_sample: MergesSample | None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.pieces = unfinished.pieces if unfinished else 0
        self._folder = folder
        self._source_sha256 = source_sha256
        self._merges_sample = merges_sample
        written = {name: unfinished.manifest.split(name) for name in SPLITS} if unfinished else {}
        self._splits = {
            name: SplitWriter(folder, name, tokenizer, shard_tokens, written.get(name)) for name in SPLITS
        }
        if unfinished is None:
            tokenizer.save(folder)
        self._record()

    @classmethod
    def resumed(cls, folder: Path, shard_tokens: int) -> TokensWriter | None:
        """A writer that goes on after what the record in `folder` lists; None if that is not all there."""
        try:
            text = (folder / PROGRESS_FILE).read_text(encoding="utf-8")
            unfinished = Unfinished.model_validate_json(text)
            manifest, tokenizer = unfinished.manifest, load_tokenizer(folder)
            if _sha256(tokenizer) != manifest.tokenizer_sha256:
                return None
            writer = cls(
                folder, tokenizer, shard_tokens, manifest.source_sha256, manifest.merges_sample, unfinished
            )
        except (OSError, ValueError):
            return None
        tokens = manifest.train.tokens + manifest.val.tokens
        print(f"{folder}: an interrupted call wrote {tokens:,} tokens; going on from there", file=sys.stderr)
        return writer

    def append(self, parts: Sequence[EncodedPiece]) -> None:
        for part in parts:
            self._splits[part.split].append(part)
        self.pieces += len(parts)
        if time.monotonic() - self._recorded >= SECONDS_BETWEEN_RECORDS:
            self._record()

    def close(self) -> Manifest:
        manifest = self._record()
        for split in self._splits.values():
            split.close()
        manifest.save(self._folder)
        return manifest

    def _record(self) -> Manifest:
        splits = {name: split.sync() for name, split in self._splits.items()}
        manifest = Manifest(
            dtype="uint16" if token_dtype(self.tokenizer.vocab_size).itemsize == 2 else "uint32",
            vocab_size=self.tokenizer.vocab_size,
            tokenizer_sha256=_sha256(self.tokenizer),
            source_sha256=self._source_sha256,
            merges_sample=self._merges_sample,
            train=splits["train"],
            val=splits["val"],
        )
        record = Unfinished(pieces=self.pieces, manifest=manifest)
        write_text(self._folder / PROGRESS_FILE, record.model_dump_json())
        self._recorded = time.monotonic()
        return manifest


def _corpus(raw: Path, split: Split, executor: str) -> Corpus | IdFiles:
    if isinstance(split, GivenSplit):
        return IdFiles(raw)
    parts = large_parts(raw) if text_bytes(raw) >= LARGE_CORPUS else []
    return LargeCorpus(raw, split, parts, executor) if len(parts) > 1 else Corpus(raw, split)


def _check_number_of_shards(tokens: int, shard_tokens: int) -> None:
    if tokens > MAX_SHARDS * shard_tokens:
        raise UserError(
            f"data.shard_tokens = {shard_tokens}: would write about {ceil(tokens / shard_tokens):,} shards; "
            f"use at least {ceil(tokens / MAX_SHARDS)}"
        )


def _sha256(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _code() -> list[Path]:
    """The files that decide how text becomes shards."""
    library = Path(__file__).parents[1]
    return sorted(path for room in ("corpus", "tokens") for path in (library / room).glob("*.py"))
