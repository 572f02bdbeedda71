"""Figures fit for a paper: its width, its fonts' size, colour-blind safe colours, vector output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.claims import band
from lab.types import BadInput

Venue = Literal["neurips", "icml"]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours for categories, told apart by all readers (Okabe and Ito 2008)."""


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
        "savefig.dpi": 250,
    }
    with mpl.rc_context(settings):
        yield


def shades(count: int) -> list[tuple[float, ...]]:
    """Colours for an ordered axis, dark to light, told apart by all readers (viridis).

    >>> len(shades(3))
    3
    """
    return [tuple(colour) for colour in plt.get_cmap("viridis")(np.linspace(0.0, 0.9, count))]


def band_plot(
    axes: Axes,
    x: np.ndarray,
    values: np.ndarray,
    *,
    colour: Any,
    label: str | None = None,
    log: bool = False,
) -> None:
    """The mean over seeds, with its 95% interval as a band.

    Args:
        axes: where.
        x: shape (points,).
        values: shape (seeds, points).
        colour: of line and band.
        label: for the legend.
        log: average the logarithm (geometric mean), for a logarithmic axis.
    """
    curves = band(np.log(values)) if log else band(values)
    mean, low, high = map(np.exp, curves) if log else curves
    axes.plot(x, mean, color=colour, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)


def theory_line(axes: Axes, y: float, *, colour: Any = "0.3", label: str | None = None) -> None:
    """A predicted level, dashed."""
    axes.axhline(y, color=colour, linestyle=(0, (4, 2)), linewidth=0.8, label=label, zorder=1)


def saved(figure: Figure, path: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write the figure beside `path` in each format, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(f".{name}") for name in formats]
    for file in files:
        undated = {"CreationDate": None} if file.suffix == ".pdf" else {"Software": None}
        figure.savefig(file, metadata=undated)
    plt.close(figure)
    return files
