"""Builds an artifact from a recipe, as `llmc build` does, and says what it has become.

The recipe and the output folder are the arguments; default: the quickstart, in build/quickstart.
"""

import sys

import llmc

recipe = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
output = sys.argv[2] if len(sys.argv) > 2 else None

result = llmc.build(recipe, output)
sizes, checks = result.manifest.sizes, result.manifest.checks
print(f"{result.path}: {sizes.original:,} → {sizes.artifact:,} bytes", "(up to date)" if result.up_to_date else "")
if checks:
    kl = f"{checks.kl_mean:.4f} ({checks.kl_kind})"
    print(f"perplexity {checks.ppl_original:.3f} → {checks.ppl:.3f}, KL divergence {kl}")
for gate in result.missed_gates:
    print(f"missed: {gate.name} is {gate.value:.4g}, the limit {gate.limit:g}")
sys.exit(3 if result.missed_gates else 0)
