"""Compares an artifact with what the original said, on this machine, and fails if a gate of its recipe is missed.

The artifact's path is the argument; default: build/quickstart.
"""

import sys

from llmc.runtime import load

artifact = sys.argv[1] if len(sys.argv) > 1 else "build/quickstart"

with load(artifact, verify=True) as model:  # compares every file's SHA-256 first
    report = model.check(progress=lambda phase, done, total: print(f"{phase}: {done} of {total}", file=sys.stderr))

before, after = (report.ppl_original, report.ppl_original_stderr), (report.ppl, report.ppl_stderr)
print("perplexity {:.3f} ± {:.3f} → {:.3f} ± {:.3f}".format(*before, *after))
print(f"KL divergence {report.kl_mean:.4f} nats per token ({report.kl_kind})")
print(f"{report.top1:.1%} of {report.tokens:,} tokens agree")
for gate in report.gates:
    print(f"{gate.name}: {gate.value:.4g}, limit {gate.limit:g}, {'passed' if gate.passed else 'MISSED'}")
sys.exit(not report.passed)
