"""`llmc.PhasedLatentAttention` as kernels: those of latent_attention.py and of expanded_latent_attention.py."""

from __future__ import annotations

from llmc.convert.kernels import expanded_latent_attention as expanded
from llmc.convert.kernels import latent_attention as absorbed
from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.runtime.plugins.phased_latent_attention import PhasedLaunch, PhasedShape


def sources(shape: PhasedShape, sm: int) -> dict[str, KernelSource]:
    found = {"absorbed": absorbed.sources(shape.absorbed, sm), "expanded": expanded.sources(shape, sm)}
    return {f"{part}_{name}": source for part, each in found.items() for name, source in each.items()}


def layout_for(shape: PhasedShape, sm: int) -> PhasedLaunch:
    return PhasedLaunch(absorbed.layout_for(shape.absorbed, sm), expanded.layout_for(shape, sm))
