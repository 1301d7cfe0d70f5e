"""How often 95 % intervals of a paired difference of shares hold the truth: Tango's, and the bootstrap's.

    python ci/bench/paired.py            # a minute

Audits are simulated: of so many questions each gets worse or better with the chances of a row, independently. In a
second table they come in groups, most of which change as one: intervals that know of it, and such that do not.
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


def grouped_coverage(groups: int, size: int, alike: float, audits: int, seed: int) -> list[float]:
    """Return the shares of simulated audits whose intervals hold the difference, where one group in ten gets worse and
    one in twenty better: a question does so with the chance `alike` if its group does. Tango's by the design effect,
    the bootstrap's over groups, Tango's as if questions were independent.
    """
    generator, numbers, held = np.random.default_rng(seed), np.repeat(np.arange(groups), size), [0, 0, 0]
    for _ in range(audits):
        template = np.repeat(generator.choice([1.0, -1.0, 0.0], groups, p=[0.05, 0.1, 0.85]), size)
        values = np.where(generator.random(len(template)) < alike, template, 0.0)
        counts = np.array([(values > 0).sum(), (values < 0).sum(), len(values)], float)
        found = (
            paired.share_interval(*(counts / paired.design_effect(values, numbers))),
            paired.mean_interval(values, numbers),
            paired.share_interval(*counts),
        )
        for place, each in enumerate(found):
            held[place] += each.low <= -0.05 * alike <= each.high
    return [each / audits for each in held]


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
    print("\n| groups of | questions | change alike | Tango | bootstrap | Tango, not told |\n|--:|--:|--:|--:|--:|--:|")
    for groups, size, alike in ((25, 8, 0.3), (25, 8, 0.8), (60, 5, 0.3), (60, 5, 0.8), (250, 8, 0.8)):
        held = grouped_coverage(groups, size, alike, options.audits, options.seed)
        print(f"| {groups} | {size} | {alike:.0%} |" + "".join(f" {share:.1%} |" for share in held))


if __name__ == "__main__":
    main()
