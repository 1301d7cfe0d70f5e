"""Numbers get smaller: schemes, GPTQ, calibration, pruning.

from llmc.quant import round_to_nearest, scheme, solve

quantized = solve(weight[None], hessian[None], scheme("int4-g128"))   # [1, out, in] and [1, in, in]
restored = quantized.weight().dequantize()                            # [out, in]
"""

from llmc.lazy import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llmc.convert.quantized_weight import QuantizedWeight
    from llmc.quant.gptq import Quantized, round_to_nearest, solve
    from llmc.quant.schemes import scheme
    from llmc.quant.schemes.base import Scheme
else:
    _HOMES = {
        "Quantized": "llmc.quant.gptq", "round_to_nearest": "llmc.quant.gptq", "solve": "llmc.quant.gptq",
        "QuantizedWeight": "llmc.convert.quantized_weight",
        "Scheme": "llmc.quant.schemes.base", "scheme": "llmc.quant.schemes",
    }  # fmt: skip
    __getattr__ = exports(__name__, _HOMES)

__all__ = ["Quantized", "QuantizedWeight", "Scheme", "round_to_nearest", "scheme", "solve"]
