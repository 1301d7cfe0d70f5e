"""Quantizes a model in float16, as checkpoint_to_gguf.py writes it, with llama.cpp's own code.

Arguments: the model (.gguf), output (.gguf), type: f16, which leaves it as it is, q4_0, q2_k to q6_k, …; and an
importance matrix (.npz: by tensor, the mean squares of its inputs), if there is one. Beside the output, in .json: the
bytes that are read per token, those of all tensors, and which types llama.cpp has chosen for how many tensors, as
K-quants need rows of 256.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp as cpp
import numpy as np


def quantize(source: Path, output: Path, kind: str, importance: Path | None = None) -> None:
    cpp.llama_log_set(ctypes.cast(None, cpp.llama_log_callback), ctypes.c_void_p())  # Python's stumbles over bytes
    options = cpp.llama_model_quantize_default_params()
    options.ftype = getattr(cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if importance:
        found = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(importance).items()}
        entries = (cpp.llama_model_imatrix_data * (len(found) + 1))()  # the last one, of zeros, ends it
        for entry, (name, values) in zip(entries, found.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = entries
    if status := cpp.llama_model_quantize(str(source).encode(), str(output).encode(), options):
        raise SystemExit(f"llama_model_quantize gave {status}")


def read_per_token(file: Path) -> float:
    """Bytes of all weights; of the experts those that a token is routed to, of the embedding none."""
    reader = gguf.GGUFReader(file)
    counts = [reader.fields.get(f"deepseek2.expert_{name}") for name in ("used_count", "count")]
    share = counts[0].contents() / counts[1].contents() if counts[0] and counts[1] else 1.0
    return sum(
        tensor.n_bytes * (share if "_exps." in tensor.name else 1)
        for tensor in reader.tensors
        if not tensor.name.startswith("token_embd")
    )


if __name__ == "__main__":
    source, output, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if kind == "f16":
        source.replace(output)
    else:
        quantize(source, output, kind, Path(sys.argv[4]) if len(sys.argv) > 4 else None)
        source.unlink()
    tensors = gguf.GGUFReader(output).tensors
    types, size = Counter(tensor.tensor_type.name for tensor in tensors), sum(int(each.n_bytes) for each in tensors)
    told = {"weights": read_per_token(output), "bytes": size, "types": types}
    output.with_suffix(".json").write_text(json.dumps(told))
