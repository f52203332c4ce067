"""GPT pretraining and finetuning as a reproducible data pipeline.

Importing it sets how long OpenMP's idle threads wait at full speed for more work, if the user has not. Their
library reads that when PyTorch is imported, so nothing may import PyTorch before.
"""

from __future__ import annotations

import os

# Rounds of a loop of GNU's OpenMP, which PyTorch for Linux has. With its 300,000, two trainings on the same
# cores wait for each other's idle threads most of the time; see docs/decisions.md.
SPIN_COUNT = "1000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
