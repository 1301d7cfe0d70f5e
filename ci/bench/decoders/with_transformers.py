"""transformers in bfloat16. Argument: see measure.py."""

from __future__ import annotations

import numpy as np
import torch
from measure import main
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    def __init__(self, path: str, threads: int, longest: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def start(self, prompt: NDArray[np.int64]) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.token = self._forward(prompt, 1)[-1].argmax()

    def step(self) -> None:
        self.token = self._forward(np.array([self.token]), 1)[-1].argmax()

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.cache = DynamicCache(config=self.model.config)
        return self._forward(ids, len(ids))

    def traffic(self) -> dict[str, float]:
        """Every weight once, of the experts those that a token is routed to, of the embedding nothing."""
        weights = 0.0
        share = getattr(self.model.config, "num_experts_per_tok", 1) / getattr(self.model.config, "n_routed_experts", 1)
        for name, weight in self.model.named_parameters():
            if "embed_tokens" not in name:
                weights += weight.nbytes * (share if ".experts." in name else 1)
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)
        return {"weights": weights, "cache": kept / self.cache.get_seq_length()}

    @torch.inference_mode()
    def _forward(self, ids: NDArray[np.int64], wanted: int) -> NDArray[np.float32]:
        found = self.model(
            torch.from_numpy(ids)[None], past_key_values=self.cache, use_cache=True, logits_to_keep=wanted
        )
        return found.logits[0].float().numpy()


if __name__ == "__main__":
    main("transformers", Transformers)
