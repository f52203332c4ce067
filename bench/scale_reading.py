"""What reading a corpus of 100 GB costs: opening it, resident memory, and tokens per second into batches.

Its 1,000 shards are sparse files, which take no disk. Rates are by CPU time, so that other programs on the
machine change them little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.harness import Figure, call_apart
from pipeline.storage.checksums import sha256_file
from pipeline.tokens.shards import (
    LARGE,
    Manifest,
    Shard,
    SplitManifest,
    SplitName,
    open_split,
    token_dtype,
)

SHARDS, SHARD_BYTES = 1000, 10**8
VOCABULARIES = (50_257, 100_277)  # ids of 16 and of 32 bits
BLOCK_SIZE, BATCH_SIZES = 1024, (12, 64)
WINDOWS = 20_000  # that are drawn from the corpus while its reader's memory is watched
RATE_WINDOWS, TIMES = 4_000, 5  # that are read for one rate, and how often


def figures(folder: Path, runs: int) -> Iterator[Figure]:
    """What is measured, beside its limits; corpora are written to `folder`."""
    for vocab_size in VOCABULARIES:
        dtype = token_dtype(vocab_size).name
        corpus = folder / dtype
        write_corpus(corpus, vocab_size)
        for batch_size in BATCH_SIZES:
            rate = call_apart(tokens_per_second, corpus, batch_size)
            title = f"tokens per second and core into batches of {batch_size} x {BLOCK_SIZE:,}, {dtype}"
            yield Figure(title, rate, f"{rate / 1e6:.0f}M", 50e6, "50M", at_least=True)
    growth = call_apart(resident_growth, corpus, WINDOWS) / 1e6
    title = f"growth of resident memory over {WINDOWS:,} windows of {SHARDS:,} shards"
    yield Figure(title, growth, f"{growth:.1f} MB", 16, "16 MB")
    seconds = call_apart(seconds_to_open, corpus, False)
    yield Figure(f"opening {SHARDS:,} shards, 100 GB", seconds, f"{seconds:.3f} s", 1, "1 s")
    write_corpus(folder / "hashed", VOCABULARIES[0], shard_bytes=LARGE)
    call_apart(seconds_to_open, folder / "hashed", True)
    seconds = call_apart(seconds_to_open, folder / "hashed", True)
    yield Figure(f"opening {SHARDS:,} shards whose hashes are known", seconds, f"{seconds:.3f} s", 1, "1 s")


def write_corpus(folder: Path, vocab_size: int, shards: int = SHARDS, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a manifest, sparse training shards of so many bytes, and one of them for validation."""
    folder.mkdir()
    dtype = token_dtype(vocab_size)
    tokens = shard_bytes // dtype.itemsize

    def split(name: SplitName, number: int) -> SplitManifest:
        listed: list[Shard] = []
        for index in range(number):
            path = folder / f"{name}-{index:05d}.bin"
            with path.open("wb") as file:
                file.truncate(shard_bytes)
            sha256 = listed[0].sha256 if listed else sha256_file(path)  # all are zeros
            listed.append(Shard(name=path.name, tokens=tokens, bytes=shard_bytes, sha256=sha256))
        return SplitManifest(tokens=number * tokens, documents=1, utf8_bytes=1, shards=listed)

    Manifest(
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        vocab_size=vocab_size,
        tokenizer_sha256="0" * 64,
        source_sha256="",
        train=split("train", shards),
        val=split("val", 1),
    ).save(folder)


def tokens_per_second(folder: Path, batch_size: int) -> float:
    """Tokens per CPU second that come as training batches from files that the system has read before."""
    from pipeline.tokens.batches import TrainingBatches

    batches = TrainingBatches(open_split(folder, "train", verify=False), BLOCK_SIZE, batch_size, 1, seed=0)
    steps = RATE_WINDOWS // batch_size

    def seconds() -> float:
        start = time.process_time()
        for step in range(steps):
            batches.micro_batch(step, 0)
        return time.process_time() - start

    seconds()
    return steps * batch_size * BLOCK_SIZE / median(seconds() for _ in range(TIMES))


def resident_growth(folder: Path, windows: int) -> int:
    """By how many bytes this process grows while it reads so many windows, after the first hundredth."""
    from pipeline.tokens.batches import TrainingBatches

    batches = TrainingBatches(open_split(folder, "train", verify=False), BLOCK_SIZE, 1, 1, seed=0)
    for step in range(windows // 100):
        batches.micro_batch(step, 0)
    before = most = resident_bytes()
    for step in range(windows // 100, windows):
        batches.micro_batch(step, 0)
        if step % 100 == 0:
            most = max(most, resident_bytes())
    return most - before


def resident_bytes() -> int:
    """The resident memory of this process. From /proc: Linux only."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def seconds_to_open(folder: Path, verify: bool) -> float:
    os.chdir(folder)  # hashes are remembered here
    start = time.perf_counter()
    open_split(Path(), "train", verify=verify)
    return time.perf_counter() - start
