from __future__ import annotations

import random

from pipeline.evaluate.compression import xz_bits


def test_empty_text_is_the_bare_container() -> None:
    header, index, footer = 12, 8, 12  # bytes, by the .xz file format specification
    assert xz_bits(b"") == 8 * (header + index + footer)


def test_noise_cannot_be_compressed_but_a_distant_repetition_is_nearly_free() -> None:
    noise = random.Random(0).randbytes(100_000)
    once, twice = xz_bits(noise), xz_bits(noise + noise)
    assert 8 * len(noise) <= once < 8 * len(noise) * 1.01
    assert twice < once * 1.01


def test_noise_from_a_small_alphabet_comes_near_its_entropy() -> None:
    text = bytes(random.Random(0).choices(b"abcd", k=100_000))  # 2 bits each
    assert 2 * len(text) < xz_bits(text) < 2.4 * len(text)
