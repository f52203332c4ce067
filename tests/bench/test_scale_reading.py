"""A corpus of 100 GB is read in little memory; its files take no disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness import call_apart
from bench.scale_reading import SHARD_BYTES, SHARDS, VOCABULARIES, resident_growth, write_corpus
from pipeline.tokens.shards import load_manifest, open_split


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_memory_stays_while_windows_are_read_all_over_100_gb(tmp_path: Path, vocab_size: int) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(corpus, vocab_size)
    paths = list(corpus.glob("train-*.bin"))
    assert sum(path.stat().st_size for path in paths) == SHARDS * SHARD_BYTES == 10**11
    assert sum(path.stat().st_blocks * 512 for path in paths) < 10**8
    assert call_apart(resident_growth, corpus, 3000) < 4e6


def test_the_corpus_is_what_its_manifest_says(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", VOCABULARIES[0], shards=3, shard_bytes=1000)
    assert load_manifest(tmp_path / "corpus").train.tokens == len(open_split(tmp_path / "corpus", "train"))
