"""The charts of training and recovery, and of what image models are trained by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mbdefense.core.text import shortened, visible
from mbdefense.records.analyses import LossCurve, Losses
from mbdefense.records.training_log import TrainingLog
from mbdefense.report.charts import Chart, Charts
from mbdefense.report.svg import GRID, SERIES, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRECISIONS = {True: "bfloat16", False: "float32", None: "-"}
MOST_DRAWN = 12  # charts; all trainings stand in the table


def training_curves(logs: Sequence[tuple[str, TrainingLog]]) -> Charts | None:
    """Loss over steps of each training: instruction tuning and recovery."""
    pictures: list[Chart] = []
    body: list[tuple[str, ...]] = []
    for name, log in sorted(logs, key=lambda named: -len(named[1].history)):  # the longest curves say most
        steps = [(entry.step, entry.loss) for entry in log.history if _finite(entry.loss)]
        checked = [(entry.step, entry.eval_loss) for entry in log.history if _finite(entry.eval_loss)]
        means = [entry.train_loss for entry in log.history if _finite(entry.train_loss)]
        lost = sum(entry.loss is not None and not _finite(entry.loss) for entry in log.history)
        body.append(
            (
                visible(name),
                str(max((entry.step for entry in log.history), default=0)),
                f"{steps[0][1]:.3f}" if steps else "-",
                f"{steps[-1][1]:.3f}" if steps else "-",
                f"{means[-1]:.3f}" if means else "-",
                f"{checked[-1][1]:.3f}" if checked else "-",
                str(lost),
                PRECISIONS[log.bf16],
            )
        )
        if steps and len(pictures) < MOST_DRAWN:
            words = f"Training loss from {steps[0][1]:.3f} to {steps[-1][1]:.3f}."
            pictures.append(_chart(f"training-{len(pictures)}", name, words, _loss_painter(steps, checked)))
    if not body:
        return None
    left = f" The {MOST_DRAWN} longest are drawn." if len(pictures) == MOST_DRAWN < len(logs) else ""
    return Charts(
        "Training and recovery",
        "Loss by step, as the trainer logged it, and the loss on rows held out to choose an epoch where there are some."
        f"{left}{_mixed(logs)}",
        tuple(pictures),
        (("●", "s0", "training loss"), ("◆", "s1", "loss on held-out rows")),
        ("Training", "Steps", "First loss", "Last loss", "Mean loss", "Last held-out loss", "Not finite", "Precision"),
        tuple(body),
    )


def loss_curves(found: Sequence[tuple[str, Losses]]) -> Charts | None:
    """Loss over steps of each model of images."""
    pictures: list[Chart] = []
    body: list[tuple[str, ...]] = []
    for name, one in found:
        model = name.rpartition("/")[0]
        curves = [curve for curve in one.curves if curve.losses]
        for curve in curves:
            first, last = (f"{curve.losses[at]:.3f}" for at in (0, -1))
            body.append((visible(shortened(model, 46)), visible(curve.name), str(curve.steps), first, last))
        if curves and len(pictures) < MOST_DRAWN:
            words = f"Loss from {curves[-1].losses[0]:.3f} to {curves[-1].losses[-1]:.3f}."
            pictures.append(_chart(f"losses-{len(pictures)}", model, words, _curve_painter(curves)))
    if not body:
        return None
    left = f" The first {MOST_DRAWN} models are drawn." if len(pictures) == MOST_DRAWN < len(found) else ""
    return Charts(
        "Training of image models",
        "Loss by step, as means of equal parts of the training. Where a defense trains several things, each is a line, "
        f"in the order of the table.{left}",
        tuple(pictures),
        (),
        ("Model", "Training", "Steps", "First loss", "Last loss"),
        tuple(body),
    )


def _chart(key: str, name: str, words: str, paint: Callable[[Figure], None]) -> Chart:
    title = shortened(name, 46)
    return Chart(title, as_svg(key, title, words, (3.1, 2.1), paint))


def _mixed(logs: Sequence[tuple[str, TrainingLog]]) -> str:
    """A warning where trainings differ in precision, as those of a grid over unlike machines do by default."""
    if {True, False} <= {log.bf16 for _, log in logs}:
        return (
            " Some computed in bfloat16 and some in float32, so that models differ by more than their arms: set"
            " --bf16 to compare them."
        )
    return ""


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _loss_painter(steps: Sequence[tuple[int, Any]], checked: Sequence[tuple[int, Any]]) -> Callable[[Figure], None]:
    def paint(figure: Figure) -> None:
        axes = _loss_axes(figure)
        axes.plot(*zip(*steps, strict=True), color=SERIES[0], marker="o", markersize=2.5, lw=1.3)
        if checked:
            axes.plot(*zip(*checked, strict=True), color=SERIES[1], marker="D", markersize=4, lw=1, ls="--")
        axes.set_ylim(bottom=0)

    return paint


def _curve_painter(curves: Sequence[LossCurve]) -> Callable[[Figure], None]:
    def paint(figure: Figure) -> None:
        axes = _loss_axes(figure)
        for number, curve in enumerate(curves):
            part = curve.steps / len(curve.losses)
            steps = [part * (at + 1) for at in range(len(curve.losses))]
            axes.plot(steps, curve.losses, color=SERIES[number % len(SERIES)], lw=1.3)
        axes.set_ylim(bottom=0)

    return paint


def _loss_axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(color=GRID)
    axes.tick_params(length=0)
    return axes
