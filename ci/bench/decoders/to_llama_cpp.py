"""Converts a checkpoint for llama.cpp and quantizes it with llama.cpp's own code.

Arguments: checkpoint, output (.gguf), type: f16, q4_0, q4_k_m, or q4_0-mtp, which has the MTP layer too. Beside the
output, in .json: the bytes that are read per token, and which types llama.cpp has chosen for how many tensors, as
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
from checkpoint_to_gguf import convert

TYPES = {"q4_0": cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def quantize(source: Path, output: Path, kind: str) -> None:
    cpp.llama_log_set(ctypes.cast(None, cpp.llama_log_callback), ctypes.c_void_p())  # Python's stumbles over bytes
    options = cpp.llama_model_quantize_default_params()
    options.ftype = TYPES[kind]
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
    kind, _, mtp = kind.partition("-")
    wide = output if kind == "f16" else output.with_suffix(".f16")
    convert(source, wide, mtp == "mtp")
    if kind != "f16":
        quantize(wide, output, kind)
        wide.unlink()
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(output).tensors)
    output.with_suffix(".json").write_text(json.dumps({"weights": read_per_token(output), "types": types}))
