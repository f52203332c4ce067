"""One thin script per pipeline stage: parse, call the library, write the outputs."""

import pipeline  # noqa: F401  (it sets how OpenMP's threads wait, before a stage imports PyTorch)
