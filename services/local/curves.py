"""Learning curves of a training run as one PNG."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.local.training_log import SMOOTHED_STEPS, TrainingLog

mpl.use("Agg")

_REWARDS = ("reward", "reward_accuracy", "reward_format", "reward_tool")
_ENTROPIES = ("entropy_nats", "entropy_increase_nats")
_HEALTH = ("mismatch_kl", "kl_reference")


def _smoothed(values: list[float]) -> list[float]:
    """Mean of each value and the ones before it, `SMOOTHED_STEPS` in all."""
    windows = [values[max(0, i + 1 - SMOOTHED_STEPS) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _line(axes: Axes, points: dict[int, float], label: str) -> None:
    """A faint line of the values and a strong one of their running mean."""
    if not points:
        return
    steps, values = list(points), list(points.values())
    (strong,) = axes.plot(steps, _smoothed(values), linewidth=1.8, label=label)
    axes.plot(steps, values, linewidth=0.6, alpha=0.4, color=strong.get_color())


def _points(log: TrainingLog, name: str) -> dict[int, float]:
    found = {step: log.figure(step, name) for step in log.steps}
    return {step: value for step, value in found.items() if value is not None}


def draw_curves(path: Path, log: TrainingLog, title: str) -> None:
    """Where it looked, what it earned, how sure it was, and whether engine and trainer agree."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(f"Training, {title}: single steps faint, mean of {SMOOTHED_STEPS} strong")
    (places, rewards), (entropies, health) = figure.subplots(2, 2)
    _line(places, log.hit_rates(), "zoom hit rate")
    _line(places, _points(log, "accuracy"), "accuracy")
    _line(places, _points(log, "box_area"), "box area, share of the image")
    places.set_ylim(0, 1)
    places.set_title("On training problems (lesions known to this plot only)", fontsize=9)
    for axes, names, about in (
        (rewards, _REWARDS, "Reward and its parts"),
        (entropies, _ENTROPIES, "Entropy, nats"),
        (health, _HEALTH, "KL: engine to trainer, policy to reference"),
    ):
        for name in names:
            _line(axes, _points(log, name), name.replace("_", " "))
        axes.set_title(about, fontsize=9)
    for axes in (places, rewards, entropies, health):
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, framealpha=0.5)
    figure.savefig(path, dpi=110)
