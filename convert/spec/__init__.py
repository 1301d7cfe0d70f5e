"""What a model is, in numbers: the one description that torch blocks, graph and quantizer all read.

A family (`convert/families/`) turns a checkpoint's config.json into a `ModelSpec`; nothing after it looks at
config.json again. Names of modules are llmc's own, which are those of Llama's and DeepSeek's checkpoints; how a family
names them is said by its `stored_names`.
"""

from __future__ import annotations

from llmc.convert.spec.attention import (
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    LongRopeSpec,
    QKNormSpec,
    QueryScalingSpec,
    RopeSpec,
)
from llmc.convert.spec.mlp import (
    Activation,
    ClampedSwiGLU,
    DenseMLPSpec,
    MixtureOfExpertsSpec,
    RouterSpec,
)
from llmc.convert.spec.model import (
    CACHE_SCALES,
    AbsentSpec,
    AttentionSpec,
    Blocks,
    MLPSpec,
    ModelSpec,
    Role,
    WiringSpec,
    blocks_of,
)
from llmc.convert.spec.module import (
    ConvolutionSpec,
    GateSpec,
    LinearSpec,
    MatrixSpec,
    ModuleSpec,
    NormSpec,
    VectorSpec,
)
from llmc.convert.spec.state import (
    GatedDeltaNetSpec,
    Mamba2Spec,
    StateSpec,
    state_bytes,
    working_channels,
)

__all__ = [
    "CACHE_SCALES",
    "AbsentSpec",
    "Activation",
    "AttentionSpec",
    "Blocks",
    "ClampedSwiGLU",
    "ConvolutionSpec",
    "DenseMLPSpec",
    "GateSpec",
    "GatedDeltaNetSpec",
    "GroupedQueryAttentionSpec",
    "LatentAttentionSpec",
    "LinearSpec",
    "LongRopeSpec",
    "MLPSpec",
    "Mamba2Spec",
    "MatrixSpec",
    "MixtureOfExpertsSpec",
    "ModelSpec",
    "ModuleSpec",
    "NormSpec",
    "QKNormSpec",
    "QueryScalingSpec",
    "Role",
    "RopeSpec",
    "RouterSpec",
    "StateSpec",
    "VectorSpec",
    "WiringSpec",
    "blocks_of",
    "state_bytes",
    "working_channels",
]
