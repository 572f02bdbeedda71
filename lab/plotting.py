"""Figures fit for a paper: its width, its fonts' size, vector output.

Curves differ by colour and by dash or marker (`STYLES`), the mean over seeds has its 95% interval
(`curve`, `points`), and a panel's key stands above it (`key`), where no data is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.claims import band
from lab.types import BadInput

Venue = Literal["neurips", "icml"]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours for categories, told apart by all readers (Okabe and Ito 2008)."""


DPI = 250
"""Of a preview: 1,375 pixels for the text width of a page."""

STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": dash, "marker": marker}
    for colour, dash, marker in zip(
        OKABE_ITO,
        ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)), "-", (0, (6, 2))),
        "osD^vPX",
        strict=True,
    )
)
"""Colour, dash and marker of a category: any of the three tells them apart."""


@contextmanager
def panels(columns: int = 1, *, rows: int = 1, **style: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in the paper's style, and its panels: from left to right, row by row.

    Args:
        columns: of panels.
        rows: of panels.
        style: of `paper_style`.

    >>> with panels(2) as (figure, (left, right)):
    ...     _ = left.plot([0, 1], [0, 1])
    """
    with paper_style(rows=rows, columns=columns, **style):
        figure, grid = plt.subplots(rows, columns, squeeze=False)
        yield figure, grid.ravel()


@contextmanager
def paper_style(
    venue: Venue = "neurips", *, rows: int = 1, columns: int = 1, ratio: float = 0.62
) -> Iterator[None]:
    """Style for figures made inside: the venue's text or column width, fonts embedded as type 42.

    Args:
        venue: "neurips" (text width 5.5 in) or "icml" (column width 3.25 in).
        rows: of panels, for the height.
        columns: of panels.
        ratio: a panel's height to its width.

    >>> with paper_style("icml"):
    ...     print(mpl.rcParams["figure.figsize"][0])
    3.25
    """
    from tueplots import figsizes, fontsizes

    sizes = {
        "neurips": (figsizes.neurips2024, fontsizes.neurips2024),
        "icml": (figsizes.icml2024_half, fontsizes.icml2024),
    }
    if venue not in sizes:
        raise BadInput(f"venue: {venue!r} is not one of {', '.join(sizes)}")
    figure_size, font_size = sizes[venue]
    settings: dict[str, Any] = {
        **figure_size(nrows=rows, ncols=columns, height_to_width_ratio=ratio),
        **font_size(),
        "font.family": "STIXGeneral",
        "mathtext.fontset": "stix",
        "pdf.fonttype": 42,
        "axes.prop_cycle": plt.cycler(color=OKABE_ITO),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.0,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def shades(count: int) -> list[tuple[float, ...]]:
    """Colours for an ordered axis, dark to light, told apart by all readers (viridis).

    >>> len(shades(3))
    3
    """
    return [tuple(colour) for colour in plt.get_cmap("viridis")(np.linspace(0.0, 0.9, count))]


def curve(axes: Axes, values: xr.DataArray, *, log: bool = False, **style: Any) -> None:
    """The mean over "seed" with its 95% interval as a band, against the one other dimension.

    Args:
        axes: where.
        values: with dims "seed" and one more, whose coordinate is the abscissa.
        log: average the logarithm (geometric mean), for a logarithmic axis.
        style: of the line: one of `STYLES`, a label. Markers are few and far between.
    """
    x, mean, low, high = _over_seeds(values, log)
    if "marker" in style:
        style = {"markersize": 3, "markevery": 0.2, **style}
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.3, linewidth=0)


def points(axes: Axes, values: xr.DataArray, *, log: bool = False, **style: Any) -> None:
    """As `curve`, each point with an error bar, and no line unless a linestyle is given."""
    x, mean, low, high = _over_seeds(values, log)
    style = {"linestyle": "none", "marker": "o", "markersize": 3, "capsize": 2, **style}
    axes.errorbar(x, mean, (mean - low, high - mean), **style)


def _over_seeds(values: xr.DataArray, log: bool) -> tuple[np.ndarray, ...]:
    """Abscissa, mean, low and high."""
    (x,) = (dim for dim in values.dims if dim != "seed")
    array = values.transpose("seed", x).values.astype(float)
    curves = band(np.log(array)) if log else band(array)
    return values[x].values, *(map(np.exp, curves) if log else curves)


def key(axes: Axes, *, columns: int = 2, title: str | None = None, **settings: Any) -> None:
    """The panel's key, above it, where no data is.

    Args:
        axes: whose labelled artists are named.
        columns: of names.
        title: a line above them.
        settings: of matplotlib's legend.
    """
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        title=title,
        alignment="left",
        borderaxespad=0.2,
        columnspacing=1.0,
        handlelength=2.2,
        title_fontsize=plt.rcParams["legend.fontsize"],
        **settings,
    )


def theory_line(axes: Axes, y: float, *, colour: Any = "0.3", label: str | None = None) -> None:
    """A predicted level, dashed."""
    axes.axhline(y, color=colour, linestyle=(0, (4, 2)), linewidth=0.8, label=label, zorder=1)


def saved(figure: Figure, path: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write the figure beside `path` in each format, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(f".{name}") for name in formats]
    for file in files:
        undated = {"CreationDate": None} if file.suffix == ".pdf" else {"Software": None}
        figure.savefig(file, metadata=undated, dpi=DPI)
    plt.close(figure)
    return files
