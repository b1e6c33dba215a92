"""From a matplotlib figure to SVG that is part of a page: its text is text, its colors are the page's.

A page whose security policy allows no inline style cannot use what matplotlib writes as it is: every declaration
becomes an attribute, and colors that stand for a role become classes, which the style sheet fills for dark and light.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PANEL = "#111111", "#777777", "#dddddd", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#9467bd", "#8c564b", "#bcbd22")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# What the legend, which is HTML, shows for each of `MARKERS`.
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟")
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PANEL: "panel"} | {
    color: f"s{number}" for number, color in enumerate(SERIES)
}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"([\d.]+)px")


def as_svg(name: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Draws a figure as an ``svg`` element.

    Args:
        name: of the chart, in the ids of its parts; letters, digits and hyphens.
        title: for screen readers.
        description: the chart in words.
        size: in inches.
        paint: fills the figure, in the colors of this module where they are to follow the page's.
    """
    import warnings

    from matplotlib import style
    from matplotlib.figure import Figure

    settings = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.titlecolor": INK,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
    }
    stream = io.StringIO()
    with style.context(settings, after_reset=True), warnings.catch_warnings():
        # Names may be in a script that the font lacks; the reader's browser draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        paint(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _part_of_page(stream.getvalue(), name, title, description)


def _part_of_page(text: str, name: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it a moment ago
    used = set()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
        link = parent.get(_LINK) or parent.get("clip-path", "").removeprefix("url(").removesuffix(")")
        used.add(link.removeprefix("#"))
    for node in root.iter():
        _restyle(node)
        _rename(node, used, name)
    for dimension in ("width", "height"):
        root.set(dimension, root.get(dimension, "").removesuffix("pt"))
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.attrib.pop("version", None)
    for tag, content in (("desc", description), ("title", title)):
        node = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        node.text = content
        root.insert(0, node)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _rename(node: ElementTree.Element, used: set[str], name: str) -> None:
    """Ids are unique in the whole page; those that nothing refers to go."""
    own = node.attrib.pop("id", None)
    if own in used:
        node.set("id", f"{name}-{own}")
    if link := node.attrib.pop(_LINK, None):
        node.set("href", link.replace("#", f"#{name}-"))
    if clip := node.get("clip-path"):
        node.set("clip-path", clip.replace("#", f"#{name}-"))


def _restyle(node: ElementTree.Element) -> None:
    declarations = dict(_declarations(node.attrib.pop("style", "")))
    for key in ("fill", "stroke"):
        if node.get(key):
            declarations.setdefault(key, node.attrib.pop(key))
    if node.tag == f"{{{_SVG}}}text":
        # matplotlib gives text no fill where it is black, and its font as one declaration.
        declarations.setdefault("fill", INK)
        font = _FONT.search(declarations.pop("font", "") or declarations.pop("font-size", ""))
        node.set("font-size", font[1] if font else "9")
        declarations.pop("font-family", None)
    classes = []
    for key, value in declarations.items():
        role = _ROLES.get(value.lower()) if key in ("fill", "stroke") else None
        if role:
            classes.append(f"{key}-{role}")
        else:
            node.set(key, value)
    if classes:
        node.set("class", " ".join(classes))


def _declarations(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(";"):
        key, colon, value = part.partition(":")
        if colon:
            yield key.strip(), value.strip()
