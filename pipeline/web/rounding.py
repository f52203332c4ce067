"""How products are added up, so that a text alone gets the very logits that it gets among others."""

from __future__ import annotations

import os
import sys


def round_alike() -> None:
    """Have MKL add up products in one order, whatever the threads. Before PyTorch is imported."""
    if "torch" not in sys.modules:  # else MKL would not see it, but processes started from here would
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
