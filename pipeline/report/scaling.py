"""A scaling law and the runs that it was fitted to: tables for a terminal, JSON, and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.evaluate.scaling_law import (
    PUBLISHED,
    Best,
    Law,
    Point,
    at_equal_compute,
    best_size,
    cost_of,
    fit_law,
    interval,
    iso_flop_exponent,
    iso_flop_interval,
    iso_flops,
    resampled_laws,
)
from pipeline.report.labels import Label, plain, put_labels
from pipeline.report.png import save_picture
from pipeline.report.tables import plain_table
from pipeline.storage.machine import decimal

CONSTANTS = ("E", "A", "B", "alpha", "beta", "params_exponent")
ENOUGH_RUNS, ENOUGH_RANGE = 12, 10.0  # fewer runs, or a smaller range of sizes or tokens, get a remark
UNCERTAIN = 0.25  # of E: a wider interval gets a remark
GOOD_PASSES = 4  # over the text; Muennighoff et al. 2023, "Scaling data-constrained language models"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Prediction:
    """The best size for a budget, with the interval of its loss; no best where larger models cost no more."""

    budget: str
    flops: float | None
    best: Best | None
    losses: tuple[float, float] | None


class ScalingReport:
    """What is known from a sweep. `names` are those of the sizes by parameters; `train_tokens` the text's."""

    def __init__(
        self, points: Sequence[Point], names: dict[float, str], title: str, train_tokens: int
    ) -> None:
        self.points = points
        self.names = names
        self.title = title
        self.train_tokens = train_tokens
        self.law = fit_law(points)
        self.minima = iso_flops(points)

    @cached_property
    def resampled(self) -> list[Law]:
        return resampled_laws(self.points)

    def predict(self, flops: Sequence[float], hours: Sequence[float]) -> list[Prediction]:
        """The best size for each budget: of FLOPs, and of hours on the machine that trained the runs."""
        budgets = [("flops", f"{budget:.3g} FLOPs", budget) for budget in flops]
        budgets += [("seconds", f"{budget:g} h here", budget * SECONDS_PER_HOUR) for budget in hours]
        return [self._predicted(*budget) for budget in budgets]

    def _predicted(self, unit: str, name: str, budget: float) -> Prediction:
        cost = cost_of(self.points, unit)
        best = best_size(self.law, cost, budget)
        others = [best_size(law, cost, budget) for law in self.resampled]
        losses = interval([each.loss for each in others if each]) if any(others) else None
        flops = None if best is None else cost_of(self.points, "flops").per_token(best.params) * best.tokens
        return Prediction(name, flops, best, losses)

    def text(self, predictions: Sequence[Prediction]) -> str:
        """Everything as tables, with remarks on how far to trust it."""
        law = plain_table([("", *CONSTANTS[:-1], "N ~ C^"), *self._law_rows()], "<>>>>>>")
        best = plain_table(list(self._prediction_rows(predictions)), "<>>>>")
        parts = [
            f"L(N, D) = E + A / N^alpha + B / D^beta, fitted to {len(self.points)} runs\n{law}",
            self._minima_text(),
            f"The best size for a budget, by this fit\n{best}",
            "\n".join(f"- {remark}" for remark in self.remarks(predictions)),
        ]
        return "\n\n".join(filter(None, parts))

    def runs_table(self) -> str:
        """The runs with what the law says of each."""
        rows = [("size", "params", "tokens", "FLOPs", "seconds", "val loss", "law")]
        for one in self.points:
            rows.append(
                (
                    self.names[one.params],
                    decimal(one.params),
                    decimal(one.tokens),
                    f"{one.flops:.2e}",
                    f"{one.seconds:.0f}",
                    f"{one.loss:.4f}",
                    f"{self.law.loss(one.params, one.tokens):.4f}",
                )
            )
        return plain_table(rows, "<>>>>>>")

    def remarks(self, predictions: Sequence[Prediction] = ()) -> Iterator[str]:
        """How far the fit can be trusted, worst first."""
        sizes, tokens = ({getattr(point, of) for point in self.points} for of in ("params", "tokens"))
        spans = max(sizes) / min(sizes), max(tokens) / min(tokens)
        if len(self.points) < ENOUGH_RUNS:
            yield f"{len(self.points)} runs are few for five constants: the fit follows their noise"
        if min(spans) < ENOUGH_RANGE:
            yield (
                f"sizes span {spans[0]:.1f}x and tokens {spans[1]:.1f}x: beyond that, or for the constants "
                "themselves, this fit is weak"
            )
        low, high = interval([law.E for law in self.resampled])
        if high - low > UNCERTAIN * self.law.E:
            yield f"E is hardly determined ({low:.2f} to {high:.2f}): only larger runs say where losses end"
        worst = max(abs(self.law.loss(p.params, p.tokens) / p.loss - 1) for p in self.points)
        yield f"the law misses no run by more than {worst:.1%}"
        passes = max(tokens) / self.train_tokens
        if passes > 1:
            yield (
                f"the longest runs read the text {passes:.1f} times; the fit counts repeated tokens as new, "
                f"which is nearly true up to {GOOD_PASSES} times (Muennighoff et al. 2023)"
            )
        if not self.minima:
            yield "no size between the smallest and the largest is the best at equal compute: try others"
        largest = max(point.flops for point in self.points)
        far = max((each.flops / largest for each in predictions if each.flops), default=1)
        if far > 2:
            yield f"a budget is {far:.0f}x the compute of the largest run: its row is an extrapolation"
        yield "every size trained with the active learning rates, which are not the best for each"

    def as_json(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """All figures."""
        intervals = {of: interval([getattr(law, of) for law in self.resampled]) for of in CONSTANTS}
        return {
            "law": {of: {"value": getattr(self.law, of), "interval": intervals[of]} for of in CONSTANTS},
            "published": {
                name: {of: getattr(law, of) for of in CONSTANTS} for name, law in PUBLISHED.items()
            },
            "iso_flop": {
                "minima": [asdict(minimum) for minimum in self.minima],
                "exponent": iso_flop_exponent(self.minima),
                "interval": iso_flop_interval(self.points),
            },
            "predictions": [asdict(each) for each in predictions],
            "remarks": list(self.remarks(predictions)),
        }

    def draw(self, path: Path) -> None:
        """Draw a PNG: the loss over tokens by size, and over size by compute, with the law as lines."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", sharey=True)
        lines = [self._draw_runs(left), self._draw_equal_compute(right)]
        for axes, x, title, ticks, labels in (
            (left, "training tokens", "Runs by size: layers x width, parameters", "tokens", lines[0]),
            (right, "parameters", "Which size is best with equal compute?", "params", lines[1]),
        ):
            axes.set_xscale("log")
            axes.set_xticks(sorted({getattr(point, ticks) for point in self.points}))
            axes.minorticks_off()
            axes.tick_params(axis="x", labelrotation=30)
            axes.xaxis.set_major_formatter(lambda count, _: decimal(count))
            axes.set_xlabel(x)
            axes.set_title(title, fontsize=11)
            plain(axes)
            put_labels(axes, labels)
        left.set_ylabel("validation loss (nats per token)")
        figure.suptitle(f"{self.title}: {formula(self.law)}", fontsize=12)
        save_picture(figure, path)

    def _draw_runs(self, axes: Any) -> list[Label]:
        import numpy as np

        tokens = np.geomspace(*_ends([point.tokens for point in self.points]))
        labels = []
        for params, color in _colors(sorted(self.names)):
            runs = [point for point in self.points if point.params == params]
            axes.plot([run.tokens for run in runs], [run.loss for run in runs], "o", color=color)
            losses = [self.law.loss(params, each) for each in tokens]
            axes.plot(tokens, losses, color=color, linewidth=1)
            text = f"{self.names[params]}, {decimal(params)}"
            labels.append(Label(tokens[-1], losses[-1], text, color))
        return labels

    def _draw_equal_compute(self, axes: Any) -> list[Label]:
        """Lines of the law; where there are runs, dots, and the lowest point of a parabola through them."""
        import numpy as np

        cost = cost_of(self.points, "flops")
        every = [point.flops for point in self.points]
        sizes = np.geomspace(*_ends(list(self.names)))
        measured = at_equal_compute(self.points) or {math.sqrt(min(every) * max(every)): []}
        minima = {minimum.flops: minimum for minimum in self.minima}
        labels = []
        for flops, color in _colors(list(measured)):
            losses = [self.law.loss(params, flops / cost.per_token(params)) for params in sizes]
            axes.plot(sizes, losses, color=color, linewidth=1)
            labels.append(Label(sizes[-1], losses[-1], f"{flops:.1e} FLOPs", color))
            axes.plot(*np.array(measured[flops]).reshape(-1, 2).T, "o", color=color, markersize=4)
            if (minimum := minima.get(flops)) is not None:
                axes.plot(
                    minimum.params, minimum.loss, "*", color=color, markersize=14, markeredgecolor="black"
                )
        note = "dots: runs; lines: the law"
        if self.minima:
            note += "\nstars: lowest point of a parabola through the dots"
        axes.annotate(note, (0.02, 0.02), xycoords="axes fraction", fontsize=8)
        return labels

    def _law_rows(self) -> Iterator[tuple[str, ...]]:
        def cells(values: Sequence[float]) -> Iterator[str]:
            for name, value in zip(CONSTANTS, values, strict=True):
                yield f"{value:.4g}" if name in "AB" else f"{value:.3f}"

        intervals = [interval([getattr(law, of) for law in self.resampled]) for of in CONSTANTS]
        yield "these runs", *cells([getattr(self.law, of) for of in CONSTANTS])
        yield "  9 of 10 resamples from", *cells([low for low, _ in intervals])
        yield "  to", *cells([high for _, high in intervals])
        for name, law in PUBLISHED.items():
            yield name, *cells([getattr(law, of) for of in CONSTANTS])

    def _minima_text(self) -> str:
        if not self.minima:
            return ""
        rows = [
            (f"{m.flops:.2e}", decimal(m.params), f"{m.loss:.4f}", str(len(m.measured))) for m in self.minima
        ]
        table = plain_table([("FLOPs", "best params", "val loss", "sizes"), *rows], "<>>>")
        exponent, ends = iso_flop_exponent(self.minima), iso_flop_interval(self.points)
        text = f"The best size at equal compute, without the law (IsoFLOP)\n{table}"
        if exponent is not None:
            text += f"\nN ~ C^{exponent:.2f}"
        return text + (f" ({ends[0]:.2f} to {ends[1]:.2f} with one size left out)" if ends else "")

    def _prediction_rows(self, predictions: Sequence[Prediction]) -> Iterator[tuple[str, ...]]:
        yield "budget", "params", "tokens", "val loss", "9 of 10 resamples"
        for each in predictions:
            if each.best is None or each.losses is None:
                yield each.budget, "-", "-", "-", "none: larger models cost no more, or the fit is too weak"
            else:
                params, tokens = decimal(each.best.params), decimal(each.best.tokens)
                low, high = each.losses
                yield each.budget, params, tokens, f"{each.best.loss:.3f}", f"{low:.3f} to {high:.3f}"


def formula(law: Law) -> str:
    """The law in one line."""
    return f"L = {law.E:.2f} + {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _colors(values: Sequence[float]) -> Iterator[tuple[float, Any]]:
    """Each value with a colour; their order is that of brightness, which no colour blindness hides."""
    from matplotlib import colormaps

    for number, value in enumerate(values):
        yield value, colormaps["viridis"](0.8 * number / max(1, len(values) - 1))
