"""All rows of the matrix, in the order of docs/reliability.md."""

from __future__ import annotations

from tests.faults import changes, company, damage, kills, large, ranks, servers  # noqa: F401  # each registers its rows
from tests.faults.table import FAULTS

ALL = tuple(FAULTS.values())
