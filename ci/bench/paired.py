"""How often 95 % intervals of a paired difference of shares hold the truth: Tango's, and the bootstrap's.

    python ci/bench/paired.py            # a minute

Audits are simulated: of so many questions each gets worse or better with the chances of a row, independently.
"""

from __future__ import annotations

import argparse

import numpy as np

from llmc import paired


def coverage(count: int, worse: float, better: float, audits: int, seed: int) -> tuple[float, float]:
    """Return the shares of simulated audits whose intervals hold the difference: Tango's, the bootstrap's."""
    drawn = np.random.default_rng(seed).multinomial(count, [better, worse, 1 - better - worse], audits)
    held = [0, 0]
    for gained, lost, same in drawn.tolist():
        values = np.repeat([1.0, -1.0, 0.0], [gained, lost, same])
        for place, found in enumerate((paired.share_interval(gained, lost, count), paired.mean_interval(values))):
            held[place] += found.low <= better - worse <= found.high
    return held[0] / audits, held[1] / audits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| questions | get worse | get better | Tango | bootstrap |\n|--:|--:|--:|--:|--:|")
    for count in (30, 100, 400):
        for worse, better in ((0.02, 0.02), (0.05, 0.02), (0.1, 0.05)):
            shares = coverage(count, worse, better, options.audits, options.seed)
            print(f"| {count} | {worse:.0%} | {better:.0%} |" + "".join(f" {share:.1%} |" for share in shares))


if __name__ == "__main__":
    main()
