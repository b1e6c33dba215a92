"""Drawing and writing, shared by the analyses: pictures that look alike on every machine, and text that stays text."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.core.files import whole_file
from mbdefense.records.analyses import write_analysis_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Perceptually even and read alike with and without red-green blindness; light is high.
COLORS = "cividis"
# Okabe and Ito's, without the yellow that is too light for lines.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")


def require() -> None:
    """Raises a `UserError` where matplotlib is missing; asked before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("drawing needs matplotlib", fix="in the clone: pip install '.[charts]'")


def heat_map(axes: Axes, values: Any, *, most: float | None = None) -> Any:
    """Shows values from 0 to `most` as colored cells, whole cells on both axes."""
    return axes.imshow(values, cmap=COLORS, vmin=0, vmax=most, aspect="auto", interpolation="nearest")


def write_analysis(
    directory: Path,
    name: str,
    value: Mapping[str, Any],
    alt: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
) -> None:
    """Writes ``name.png`` and then ``name.json``, which marks the analysis as done.

    Args:
        directory: made if it is missing.
        name: of the analysis, also in the file.
        value: the data; the schema, the analysis' name and `alt` are added.
        alt: the picture in words. It also stands in the picture's own description.
        size: of the picture, in inches.
        paint: fills the figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    # The user's own matplotlibrc must not change a result's picture, and "$" in a name is no formula.
    with style.context({"text.parse_math": False, "figure.facecolor": "white"}, after_reset=True):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        with whole_file(directory / f"{name}.png") as stream, warnings.catch_warnings():
            # Names may be in a script that the font lacks; they are drawn as boxes and stand in the JSON in full.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(stream, format="png", dpi=150, metadata={"Description": alt})
    write_analysis_file(directory, name, value, alt)
