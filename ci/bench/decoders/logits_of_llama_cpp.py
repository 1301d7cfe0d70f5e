"""Logits of a text by llama.cpp. Arguments: GGUF file, token ids [N, P] (.npy), output [N, P, V] (.npy)."""

from __future__ import annotations

import sys

import numpy as np
from with_llama_cpp import LlamaCpp

if __name__ == "__main__":
    file, ids, output = sys.argv[1:4]
    rows = np.load(ids)
    model = LlamaCpp(file, 2, max(64, rows.shape[1]))
    np.save(output, np.stack([model.logits(row) for row in rows]))
