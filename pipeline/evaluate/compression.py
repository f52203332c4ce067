"""A general-purpose compressor as a baseline: what repeated text alone gives, without a language model."""

from __future__ import annotations

import lzma


def xz_bits(text: bytes) -> int:
    """The bits of the .xz file that `xz -9e` makes of `text`, including its container (some 60 bytes).

    The compressor has no training: it only refers back to the last 64 MiB of this text. Its memory use grows
    with the length of the text, up to 0.7 GB.
    """
    return 8 * len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
