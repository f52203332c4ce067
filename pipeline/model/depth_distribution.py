"""How often a recurrent block is applied in a training step: a draw that depends on seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.tokens.batches import mix

_STREAM = np.uint64(0xD1B54A32D192ED03)  # keeps these draws apart from others of the same seed and step


class DepthDistribution:
    """Probabilities of 1, 2, … applications.

    A draw is a pure function of its arguments: the same on every rank, and after a resume.
    """

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

    def draw(self, seed: int, micro_steps: np.ndarray | int) -> np.ndarray:
        """The depths of these micro-steps (counted from the start of training)."""
        key = mix(np.uint64(seed) ^ _STREAM)
        bits = mix(np.atleast_1d(micro_steps).astype(np.uint64) ^ key)
        uniform = (bits >> np.uint64(11)).astype(np.float64) / 2**53  # in [0, 1)
        return 1 + np.searchsorted(self._up_to, uniform, side="right")


def _normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2
