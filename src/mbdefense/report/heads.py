"""The chart of poisoned attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mbdefense.analysis.chart import COLORS
from mbdefense.core.text import visible
from mbdefense.evaluation.landing import share
from mbdefense.records.analyses import HeadCount, Heads
from mbdefense.report.charts import Chart, Charts
from mbdefense.report.svg import as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def head_maps(found: Sequence[tuple[str, Heads]]) -> Charts | None:
    """Which attention heads look at the trigger, beside a held-out trigger."""
    pictures, body = [], []
    for at, (_, heads) in enumerate(found):
        for side, what in ((heads.trigger, "trigger"), (heads.held_out, "held-out control")):
            count = side.heads
            title = visible(
                f"{what} {side.method}: {count.poisoned.value:.0f} of {count.heads} heads poisoned "
                f"[{count.poisoned.low:.0f}, {count.poisoned.high:.0f}], n={count.n} prompts, seed {heads.seed}"
            )
            name = f"heads-{at}-{what.split('-')[0]}"
            size = 1.6 + 0.22 * min(_width(count), 40), 1.4 + 0.11 * min(len(count.layers), 80)
            words = visible(heads.alt)
            pictures.append(
                Chart(title, as_svg(name, title, words, (max(size[0], 3.5), size[1]), _head_painter(count)))
            )
            body += _strongest(visible(side.method), count)
    if not pictures:
        return None
    alphas = ", ".join(sorted({f"{heads.alpha:g}" for _, heads in found}))
    return Charts(
        "Poisoned attention heads",
        "Share of the tokens after the trigger whose strongest attention goes to it, by layer and head. "
        f"A head above alpha ({alphas}) counts as poisoned and carries a dot.",
        tuple(pictures),
        (),
        ("Trigger", "Layer", "Head", "Share", "Poisoned"),
        tuple(body),
    )


def _width(count: HeadCount) -> int:
    return max(len(layer.share) for layer in count.layers)


def _head_painter(count: HeadCount) -> Any:
    def paint(figure: Figure) -> None:
        import numpy as np
        from matplotlib import colormaps

        axes = figure.add_subplot()
        values = np.full((len(count.layers), _width(count)), np.nan)
        for y, layer in enumerate(count.layers):
            values[y, : len(layer.share)] = [bound.value for bound in layer.share]
        # Few colors, because the color bar is drawn as one shape for each; edges of the same color leave no seams.
        colors = colormaps[COLORS].resampled(25)
        heads, layers = np.arange(values.shape[1]), np.arange(values.shape[0])
        mesh = axes.pcolormesh(
            heads, layers, values, cmap=colors, vmin=0, vmax=1, shading="nearest", edgecolors="face", linewidth=0.3
        )
        dots = [(x, y) for y, layer in enumerate(count.layers) for x, is_ in enumerate(layer.poisoned) if is_]
        axes.scatter(
            [x for x, _ in dots], [y for _, y in dots], s=12, c="#d55e01", edgecolors="#ffffff", linewidths=0.6
        )
        axes.invert_yaxis()
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.tick_params(length=0)
        # A color bar is an image by default, which the page's security policy would have to allow.
        bar = figure.colorbar(mesh, ax=axes, label="share of tokens", ticks=[0, 0.5, 1])
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
            bar.solids.set_edgecolor("face")
        bar.outline.set_visible(False)

    return paint


def _strongest(method: str, count: HeadCount, most: int = 15) -> list[tuple[str, ...]]:
    """The heads that look at the trigger most."""
    found = [
        (bound, y, x, layer.poisoned[x]) for y, layer in enumerate(count.layers) for x, bound in enumerate(layer.share)
    ]
    found.sort(key=lambda one: (-one[0].value, one[1], one[2]))
    return [
        (
            method,
            str(y),
            str(x),
            f"{share(bound.value)} [{share(bound.low)}, {share(bound.high)}]",
            "yes" if is_ else "no",
        )
        for bound, y, x, is_ in found[:most]
    ]
