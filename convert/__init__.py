"""A checkpoint comes in, a graph and an engine go out.

from llmc.convert import Checkpoint

checkpoint = Checkpoint.open("models/DeepSeek-V2-Lite")    # reads headers, no weights
weight = checkpoint.tensor("model.layers.0.self_attn.o_proj.weight")
"""

from llmc.lazy import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint
    from llmc.convert.quantized_weight import QuantizedWeight
else:
    __getattr__ = exports(
        __name__,
        {"Checkpoint": "llmc.convert.checkpoint", "QuantizedWeight": "llmc.convert.quantized_weight"},
    )

__all__ = ["Checkpoint", "QuantizedWeight"]
