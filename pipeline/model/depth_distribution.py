"""How often a recurrent block is applied in a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class DepthDistribution:
    """Probabilities of 1, 2, … applications."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.probabilities = np.asarray(probabilities)
        assert abs(self.probabilities.sum() - 1) < 1e-9, "probabilities sum to one"
        self._up_to = self.probabilities.cumsum()
        self._up_to[-1] = 1.0

    @classmethod
    def uniform(cls, maximum: int) -> DepthDistribution:
        """1 … maximum, each as likely."""
        return cls([1 / maximum] * maximum)

    @classmethod
    def log_normal(cls, mean: float, spread: float, maximum: int) -> DepthDistribution:
        """A log-normal variable of this mean, rounded, at least 1 and at most `maximum`.

        `spread` is the deviation of its logarithm. The mean is that before rounding and capping.
        """
        ends = [*range(1, maximum)]  # depth n stands for values up to n + 1/2
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
        """The depths that numbers in [0, 1) stand for: uniform ones give draws. (N,) -> (N,)."""
        return 1 + np.searchsorted(self._up_to, uniform, side="right")


def _normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2
