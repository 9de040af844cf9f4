"""Draws the ratios of a run as `results.svg`. Run by the Python that has matplotlib.

Reads JSON from its input: `[[label, low, value, high, target or null, standing], ...]`.
"""

import json
import sys
from pathlib import Path
from typing import Any

_COLOURS = {"reached": "#2a6f97", "short": "#d9a441", "missed": "#b5484b", "noted": "#9a9a9a"}
_TARGET = "#333333"


def draw(bars: list[list[Any]], path: Path) -> None:
    """A bar for each ratio from 1 on, the rounds' range on it, and its target."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(bars) + 1.2), layout="constrained")
    for position, (_, low, value, high, target, standing) in enumerate(bars):
        axes.barh(position, value - 1, left=1, height=0.6, color=_COLOURS[standing])
        axes.plot([low, high], [position, position], color="black", linewidth=1)
        if target is not None:
            axes.plot([target] * 2, [position - 0.4, position + 0.4], color=_TARGET, linewidth=2.5)
        place = (max(value, high, 1), position)
        offset = {"xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(f"{value:.2f}x", place, va="center", **offset)
    axes.set_yticks(range(len(bars)), [str(bar[0]) for bar in bars])
    axes.invert_yaxis()
    _scale(axes)
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in _COLOURS.values()]
    figure.legend(patches, _COLOURS, ncols=len(_COLOURS), loc="outside lower right", frameon=False)
    axes.set_title("The gateway against its peers; the upright strokes are the targets", loc="left")
    figure.savefig(path, metadata={"Date": None, "Title": "The gateway against its peers"})


def _scale(axes: Any) -> None:
    """Twice and half as good are as far from 1."""
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xticks(ticks := [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25], [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
