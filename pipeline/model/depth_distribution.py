"""The distribution that training draws a recurrent model's depth from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class DepthDistribution:
    """The probabilities of depth 1, 2, … (applications of the recurrent block)."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.probabilities = np.asarray(probabilities)
        assert abs(self.probabilities.sum() - 1) < 1e-9, "probabilities must sum to one"
        self._cumulative = self.probabilities.cumsum()
        self._cumulative[-1] = 1.0

    @classmethod
    def uniform(cls, maximum: int) -> DepthDistribution:
        """Depths 1 … maximum, all equally likely."""
        return cls([1 / maximum] * maximum)

    @classmethod
    def log_normal(cls, mean: float, spread: float, maximum: int) -> DepthDistribution:
        """A log-normal distribution, rounded to whole depths and clipped to 1 … `maximum`.

        `mean` is its mean before rounding and clipping, `spread` the standard deviation of its logarithm.
        """
        ends = [*range(1, maximum)]  # values up to n + 1/2 round to depth n
        if spread:
            center = math.log(mean) - spread**2 / 2
            below = [_normal_cdf((math.log(end + 0.5) - center) / spread) for end in ends]
        else:
            below = [float(mean < end + 0.5) for end in ends]
        return cls(np.diff([0.0, *below, 1.0]).tolist())

    @property
    def mean(self) -> float:
        return float(self.probabilities @ np.arange(1, len(self.probabilities) + 1))

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Inverse of the cumulative distribution: maps uniform numbers in [0, 1) to depths. (N,) -> (N,)."""
        return 1 + np.searchsorted(self._cumulative, uniform, side="right")


def _normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2
