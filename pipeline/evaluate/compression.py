"""A general-purpose compressor as a baseline: what repetition is worth without a language model."""

from __future__ import annotations

import lzma


def xz_bits(text: bytes) -> int:
    """Size in bits of the .xz file that `xz -9e` makes of `text`, its container (some 60 bytes) included.

    The compressor knows nothing but what it has read of this very text, up to 64 MiB back. Its memory grows
    with the length of the text, to at most 0.7 GB.
    """
    return 8 * len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
