"""What keeps hundreds of tiny training runs fast."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def fast(without_fsync: None, with_known_peak: None) -> None:
    pass
