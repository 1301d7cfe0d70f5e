#!/usr/bin/env python3
"""How often the end of a one-sided interval of 95 % lies above the true mean, where that is known.

    python ci/bench/intervals.py

Texts are made of windows of 256 tokens, whose divergences are log-normal: σ = 2 in a token, 0.3 between windows. Beside
what `llmc check` does: quantiles of the resampled means, and 1.645 standard errors. Prints the shares that stand in
docs/statistics.md.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from rich.console import Console
from rich.table import Table

from llmc.runtime.uncertainty import ends, standard_error

IN_TOKEN, BETWEEN, TOKENS = 2.0, 0.3, 256
MEAN = math.exp((IN_TOKEN**2 + BETWEEN**2) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="+", type=int, default=[4, 8, 16, 64])
    parser.add_argument("--texts", type=int, default=1000)
    args = parser.parse_args()
    table = Table("windows", "llmc check", "quantile of means", "1.645 errors", title=f"{args.texts} texts")
    for windows in args.windows:
        drawn = np.random.default_rng(windows)
        above = np.zeros(3)
        for _ in range(args.texts):
            shift = BETWEEN * drawn.standard_normal((windows, 1))
            values = np.exp(shift + IN_TOKEN * drawn.standard_normal((windows, TOKENS)))
            means = values.mean(1)
            resampled = drawn.choice(means, (1000, windows)).mean(1)
            found = ends(values, upper=True)["95"], np.quantile(resampled, 0.95)
            above += np.array([*found, values.mean() + 1.645 * standard_error(values)]) >= MEAN
        table.add_row(str(windows), *(f"{100 * share:.1f} %" for share in above / args.texts))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
