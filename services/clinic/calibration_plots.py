"""Pictures of a calibration, of held-out problems: is what is said true, and what does it buy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from services.clinic.fitting import Bin, RiskAt

mpl.use("Agg")

_COLOURS = ("#b0b0b0", "#1f77b4")


def draw_reliability(path: Path, bins: Mapping[str, Sequence[Bin]], title: str) -> None:
    """Share that was right over the probability that was said; the area of a dot is its answers."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#404040", linewidth=0.8, linestyle="--")
    for (name, points), colour in zip(bins.items(), _COLOURS, strict=False):
        total = sum(b.num_answers for b in points)
        sizes = [20 + 400 * b.num_answers / total for b in points]
        said, right = [b.said for b in points], [b.right for b in points]
        axes.plot(said, right, color=colour, linewidth=1.0)
        axes.scatter(said, right, s=sizes, color=colour, alpha=0.7, label=name, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="said", ylabel="right", title=title)
    axes.legend(loc="upper left", fontsize=8, markerscale=0.4)
    figure.savefig(path, dpi=110)


def draw_risk_coverage(path: Path, curves: Mapping[str, Sequence[RiskAt]], title: str) -> None:
    """Share of wrong answers over the share of problems answered, the surest first."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), _COLOURS, strict=False):
        coverage, risk = [p.coverage for p in points], [p.risk for p in points]
        axes.plot(coverage, risk, color=colour, marker="o", markersize=3, label=name)
    axes.set(xlim=(0, 1), xlabel="coverage", ylabel="risk", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
