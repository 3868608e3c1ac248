"""A sheet of panels for a paper: 200 dots an inch, SVG whose words stay words, and looks that survive grey printing.

Series are told apart by dash and marker as well as colour. Lightness alone orders shades.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from homunculi.errors import optional
from homunculi.runs.shades import LEVELS, colours

DPI = 200
WIDTH, HALF = 7.0, 3.5  # inches
INK, SOFT, LINE = "#1d1d1f", "#5c5c63", "#dcdad4"
COLOURS = ("#0b62a8", "#c4501b", "#1b7f5c", "#8a4a9e", "#8d6200", "#1f7f9f", "#b8336a", "#55555c")
DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (7, 2, 2, 2)), (0, (3, 2)), "-", (0, (6, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "x", "+", "v", "_")
_POINTS = {"font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.5}
_LOOK = {
    **_POINTS,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # words of a run are words, whatever dollars stand in them
    "svg.fonttype": "none",
    "svg.hashsalt": "homunculi",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}


@dataclass(frozen=True)
class Panel:
    """One drawing of a sheet.

    Attributes:
        draw: puts it on matplotlib's axes.
        title: written above it where a sheet has several.
        height: inches of the drawing without what stands around it.
        wide: takes the whole width of the sheet.
    """

    draw: Callable[[Any], None]
    title: str = ""
    height: float = 1.9
    wide: bool = False


def draw_sheet(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Panels from left to right and from top to bottom, as PNG and SVG; the same panels give the same bytes.

    Raises:
        InputError: matplotlib is not installed.
    """
    optional("matplotlib", "report")
    with _dressed():
        from matplotlib.figure import Figure

        rows = list(_rows(panels))
        alone = len(panels) == 1
        heights = [max(panel.height for panel in row) + 0.75 for row in rows]
        width = (WIDTH if panels[0].wide else 4.6) if alone else WIDTH
        figure = Figure(figsize=(width, sum(heights)), dpi=DPI, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.02, wspace=0.04)
        grid = figure.add_gridspec(len(rows), 1 if alone else 2, height_ratios=heights)
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                axes = figure.add_subplot(grid[i, :] if panel.wide or alone else grid[i, j])
                if panel.title and not alone:
                    axes.set_title(plain(panel.title), fontsize=8.5, loc="left", fontweight="bold")
                panel.draw(axes)
        return _saved(figure)


def _rows(panels: Sequence[Panel]) -> Iterator[list[Panel]]:
    """Two narrow panels side by side, a wide one alone."""
    row: list[Panel] = []
    for panel in panels:
        if row and (panel.wide or len(row) == 2):
            yield row
            row = []
        row.append(panel)
        if panel.wide:
            yield row
            row = []
    if row:
        yield row


def _saved(figure: Any) -> dict[str, bytes]:
    found = {}
    for kind, about in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "homunculi"})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=about)
        found[kind] = buffer.getvalue()
    return found


@contextmanager
def _dressed() -> Iterator[None]:
    """The looks of a sheet, for as long as it is drawn."""
    from matplotlib import rc_context

    with rc_context(_LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the SVG has the letter, and the PNG a box
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied")
        yield


def plain(words: str, longest: int = 60) -> str:
    """Words that any drawing can hold: nothing that acts, and not without end."""
    inert = "".join(letter if letter.isprintable() else "\ufffd" for letter in words)
    return inert if len(inert) <= longest else inert[: longest - 1] + "…"


def shades() -> Any:
    """The colour map: light to dark, as scans have it."""
    from matplotlib.colors import LinearSegmentedColormap

    palette = colours(dark=False)
    return LinearSegmentedColormap.from_list("shades", [palette[f"s{i}"] for i in range(2 * LEVELS + 1)])


def brief(value: float) -> str:
    """A number at an axis: 0.25, 540, 12 k."""
    size = abs(value)
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= 10_000 and size >= scale:
            return f"{value / scale:.4g} {letter}".replace("-", "\u2212")
    return f"{value:.4g}".replace("-", "\u2212")


def write_numbers(axis: Any) -> None:
    """Ticks of an axis as people read them, also where it spaces by ratio."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, place: brief(value)))
    axis.set_minor_formatter(NullFormatter())


def space_by_ratio(axis: Any, low: float, high: float) -> None:
    """Round numbers on an axis from low to high that spaces by ratio, as few as are readable."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            axis.set_ticks(ticks[:: -(-len(ticks) // 6)])
            break
    axis.set_ticks([], minor=True)
    write_numbers(axis)


def space_steps(axes: Any, end: float, marked: Sequence[float] = ()) -> None:
    """Steps up to an end along the x axis by the logarithm of one more than the step, as measurements are spaced; 0 is
    on it.

    Args:
        marked: steps with a tick beside 0 and powers of ten; powers that would touch them have none.
    """
    import numpy as np

    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    room = math.log1p(end) / 12
    powers = [0, *(10**power for power in range(math.ceil(math.log10(max(end, 1.0)))))]
    free = [at for at in powers if all(abs(math.log1p(at) - math.log1p(other)) > room for other in marked)]
    axes.set_xticks(sorted([*free, *marked]))
    axes.set_xlim(-0.08, math.expm1(math.log1p(end) * 1.02))
    axes.set_xticks([], minor=True)
    write_numbers(axes.xaxis)


def look_of(place: int) -> dict[str, Any]:
    """Colour, dash and marker of a series."""
    i = place % len(COLOURS)
    return {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markerfacecolor": "white"}


def name_series(axes: Any, count: int) -> None:
    """A legend where there is more than one series: above while there are few, else beside."""
    if count > 4:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)
    elif count > 1:
        letters = sum(len(name) + 7 for name in axes.get_legend_handles_labels()[1])
        columns = count if letters < 48 else 2
        look = {"columnspacing": 1.2, "handletextpad": 0.5, "borderpad": 0.2}
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0, ncols=columns, **look)


def rule(axes: Any) -> None:
    """Faint lines to read values by."""
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
