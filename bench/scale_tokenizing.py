"""What it costs to turn 100 MB of text into tokens: by one process, by two, and as nanoGPT does."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.harness import Figure, Process, copy_project, put_preset, run_python
from pipeline.config.paths import DATA
from pipeline.corpus import pydocs
from pipeline.corpus.documents import write_parquet
from pipeline.corpus.sources import DatasetSpec, DocumentSplit, PydocsSource, write_spec
from pipeline.tokens.shards import load_manifest

TEXT_BYTES = 100_000_000
DATASET = "large"
SECONDS_BETWEEN_LOOKS = 0.05

# As nanoGPT's data/openwebtext/prepare.py does it, from a Parquet file instead of the hub, in one process.
PREPARE = """\
import sys
import numpy as np
from datasets import load_dataset
from pipeline.tokens.tokenizers import gpt2_tokenizer

encoding = gpt2_tokenizer()._encoding  # what tiktoken.get_encoding("gpt2") downloads

def process(example):
    ids = encoding.encode_ordinary(example["text"])
    ids.append(encoding.eot_token)
    return {"ids": ids, "len": len(ids)}

texts = load_dataset("parquet", data_files=sys.argv[1], split="train", cache_dir="cache")
splits = texts.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
splits["val"] = splits.pop("test")
tokenized = splits.map(process, remove_columns=["text"])
for split, documents in tokenized.items():
    total = np.sum(documents["len"], dtype=np.uint64)
    written = np.memmap(f"{split}.bin", dtype=np.uint16, mode="w+", shape=(int(total),))
    start, batches = 0, min(1024, len(documents))
    for number in range(batches):
        batch = documents.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        written[start : start + len(ids)] = ids
        start += len(ids)
    written.flush()
"""


def figures(folder: Path, runs: int) -> list[Figure]:
    """Tokenize 100 MB with GPT-2's tokenizer: by one process, by two, and as nanoGPT does."""
    copy_project(folder)
    put_preset(folder, "default", {"data": {"dataset": DATASET}, "tokenizer": {"name": "gpt2"}})
    raw = folder / DATA / DATASET / "raw"
    raw.mkdir(parents=True)
    split = DocumentSplit(by="documents", fraction=0.0005, seed=2357)
    write_spec(DatasetSpec(source=PydocsSource(kind="pydocs"), split=split), raw.parent / "dataset.yaml")
    write_parquet(raw / "documents.parquet", _texts())

    def encode(workers: int) -> Process:
        shutil.rmtree(raw.parent / "gpt2", ignore_errors=True)
        name = f"tokenize, {workers} worker" + ("s" if workers > 1 else "")
        return run_python(name, folder, "-m", "stages.tokenize", f"-Sruntime.workers={workers}")

    def encode_as_nanogpt() -> Process:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return run_python("tokenize as nanoGPT", folder, "-c", PREPARE, str(raw / "documents.parquet"))

    one, two, other = list[Process](), list[Process](), list[Process]()
    with largest_worker() as peak:
        for _ in range(runs):
            one.append(encode(1))
            two.append(encode(2))
            other.append(encode_as_nanogpt())
    manifest = load_manifest(raw.parent / "gpt2")
    millions = (manifest.train.tokens + manifest.val.tokens) / 1e6
    cpu = median(each.cpu_seconds for each in one) / millions
    ratio = median(a.cpu_seconds / b.cpu_seconds for a, b in zip(one, other, strict=True))
    faster = median(a.seconds / b.seconds for a, b in zip(one, two, strict=True))
    megabytes = peak() / 1e6
    text = f"{TEXT_BYTES / 1e6:.0f} MB of text"
    return [
        Figure("CPU seconds for a million GPT-2 tokens", cpu, f"{cpu:.3f}", 0.30, "0.30"),
        Figure("their ratio to nanoGPT's prepare.py", ratio, f"{ratio:.2f}", 0.65, "0.65"),
        Figure(f"2 workers instead of 1, {text}", faster, f"{faster:.2f}x", 1.6, "1.60x", at_least=True),
        Figure("memory of a worker", megabytes, f"{megabytes:.0f} MB", 300, "300 MB"),
    ]


@contextmanager
def largest_worker() -> Iterator[Callable[[], int]]:
    """Yield a function: the most bytes of memory that a process of a process of this one took. Linux only."""
    most, ended = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            parents, peaks = dict[int, int](), dict[int, int]()
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    found = dict(re.findall(r"^(PPid|VmHWM):\s+(\d+)", status.read_text(), re.MULTILINE))
                except OSError:  # it has ended
                    continue
                process = int(status.parent.name)
                parents[process], peaks[process] = int(found["PPid"]), int(found.get("VmHWM", 0)) << 10
            for process, peak in peaks.items():
                if parents.get(parents[process]) == os.getpid():
                    most = max(most, peak)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: most
    finally:
        ended.set()
        thread.join()


def _texts() -> Iterator[str]:
    """Documents of TEXT_BYTES together: Python's documentation, again and again."""
    documents = [text for _, text in pydocs.documents()]
    size = 0
    while True:
        for text in documents:
            if size >= TEXT_BYTES:
                return
            size += len(text.encode())
            yield text
