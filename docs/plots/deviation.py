"""Draw how far from its exact share the worst instance is, over one period, for each order.

usage: python docs/plots/deviation.py [FILE]     (rota and `pip install --group docs`)
"""

import sys
from math import gcd
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
from matplotlib import pyplot as plt  # only now: it looks for a screen

from rota import FairRoundRobin, InterleavedWeightedRoundRobin, WeightedRoundRobin

ORDERS = {
    "interleaved": (InterleavedWeightedRoundRobin, "#b8b8b8"),
    "smooth": (WeightedRoundRobin, "#d1642a"),
    "fair": (FairRoundRobin, "#1f5fa8"),
}
LONG_TAILED = [round(2 ** (k * 10 / 39)) for k in range(40)]  # even in the logarithm
VECTORS = {
    "16 weights found by search": [
        *(280, 280, 492, 8, 13, 1, 25, 1, 1, 1, 3, 25, 27, 10, 25, 27),
    ],
    "40 weights from 1 to 1024, even in the logarithm": LONG_TAILED,
}
COLUMNS = 240  # of the curve: the greatest of all picks in each


def deviations(make: type, weights: list[int]) -> np.ndarray:
    """Return max |t * w / W - picks so far| over the instances, for each t of a period."""
    total, period = sum(weights), sum(weights) // gcd(*weights)
    picks = np.empty(period, np.int32)
    make(range(len(weights)), weights, start=0).fill(picks)
    had = np.zeros((period, len(weights)), np.int64)
    had[np.arange(period), picks] = 1
    had = had.cumsum(axis=0)
    t = np.arange(1, period + 1)[:, None]
    return np.abs(t * np.array(weights) - had * total).max(axis=1) / total


def main() -> None:
    """Draw, and say the greatest of each."""
    file = Path(__file__).parent.parent / "img" / "deviation.svg"
    if len(sys.argv) > 1:
        file = Path(sys.argv[1])
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "rota", "font.size": 9}
    figure, panels = plt.subplots(len(VECTORS), sharey=True, figsize=(7.2, 5.2))
    for panel, (title, weights) in zip(panels, VECTORS.items(), strict=True):
        for name, (make, colour) in ORDERS.items():
            worst = deviations(make, weights)
            edges = np.linspace(0, len(worst), COLUMNS + 1).astype(int)[:-1]
            thinned = np.maximum.reduceat(worst, edges).clip(max=3).round(3)
            label = f"{name}, at most {worst.max():.3f}"
            panel.plot(edges, thinned, color=colour, linewidth=1.2, label=label)
            print(f"{title}: {label}")
        panel.axhline(1, color="black", linewidth=0.6, linestyle=":")
        panel.set_ylim(0, 2)  # interleaved soon leaves it
        panel.margins(x=0)
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_ylabel("picks")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8, loc="upper right", ncols=3)
    panels[-1].set_xlabel("picks so far, of one period")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
