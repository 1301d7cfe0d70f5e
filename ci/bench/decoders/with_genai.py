"""onnxruntime-genai. Argument: see measure.py; `model` is a folder that its builder wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from measure import main
from numpy.typing import NDArray


class Genai:
    """Generators are of one use: each prompt gets a new one."""

    def __init__(self, path: str, threads: int, longest: int) -> None:
        file = Path(path) / "genai_config.json"
        config = json.loads(file.read_text())
        config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads}
        config["model"]["eos_token_id"] = []  # nothing shall end it
        file.write_text(json.dumps(config, indent=4))
        self.model, self.longest, self.decoder = genai.Model(path), longest, config["model"]["decoder"]

    def start(self, prompt: NDArray[np.int64]) -> None:
        self._new()
        self.generator.append_tokens(prompt.astype(np.int32))
        self.generator.generate_next_token()  # chooses; every later call feeds what was chosen first

    def step(self) -> None:
        self.generator.generate_next_token()

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self._new()
        self.generator.append_tokens(ids.astype(np.int32))
        return np.array(self.generator.get_output("logits"), np.float32)[0]

    def traffic(self) -> dict[str, float]:
        """Of the cache, whose width the graph leaves open; of the weights the graph says it: see onnx_traffic.py."""
        heads = self.decoder["num_key_value_heads"] * self.decoder["num_hidden_layers"]
        return {"cache": 2 * heads * self.decoder["head_size"] * 4}  # keys and values, in float32

    def _new(self) -> None:
        options = genai.GeneratorParams(self.model)
        options.set_search_options(max_length=self.longest + 1, do_sample=False)
        self.generator = genai.Generator(self.model, options)


if __name__ == "__main__":
    main("onnxruntime-genai", Genai)
