"""Labels drawn from what a model says of the next token, and the gradient of their log-likelihood.

Over such labels the gradients' second moments are those of the Fisher information, and half of that is how the KL
divergence from the model grows around it: labels of the text would give another matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmc.convert.model import scaled_logits
from llmc.convert.spec import ModelSpec
from llmc.quant.observed import ObservedLinear
from llmc.quant.overflow import refuse_overflow

_COPIES = 8  # of the logits, that are in memory at once: with float64 probabilities and their gradients


@dataclass(frozen=True)
class DrawnLabels:
    """Draws labels, row by row, and goes back through the head.

    Attributes:
        spec: of the model
        head: `lm_head`
        seed: of all labels; those of a row do not depend on how many rows there are
        draws: how many labels for each token
        room: bytes for what is as wide as the vocabulary
    """

    spec: ModelSpec
    head: ObservedLinear
    seed: int
    draws: int
    room: int

    def gradients(self, hidden: torch.Tensor, row: int, kind: int) -> torch.Tensor:
        """[draws, L, H], of the summed log-likelihood of a row's labels with respect to hidden [L, H] behind the norm.

        Args:
            kind: tells the labels of several heads apart
        """
        numbers = torch.stack([uniform(len(hidden), (self.seed, kind, draw, row)) for draw in range(self.draws)])
        found = hidden.new_empty(self.draws, *hidden.shape)
        for tokens in self._chunks(len(hidden)):
            found[:, tokens] = self._of_chunk(hidden[tokens].detach(), row, tokens, numbers[:, tokens])
        return found

    def _chunks(self, count: int) -> Iterator[slice]:
        step = max(1, self.room // (4 * _COPIES * self.spec.vocab_size))
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def _of_chunk(self, hidden: torch.Tensor, row: int, tokens: slice, numbers: torch.Tensor) -> torch.Tensor:
        observer = self.head.observer
        observer.rows, observer.length = slice(row, row + 1), len(hidden)
        with torch.enable_grad():
            x = hidden.requires_grad_()
            said = scaled_logits(self.spec, self.head(x)).float()
            refuse_overflow(said.detach(), "the original model's logits over the calibration text")
            said = said.log_softmax(-1)
            labels, found = drawn(said.detach(), numbers.mT.to(said.device)), []
            for draw in range(self.draws):
                observer.draw = draw
                picked = said.gather(-1, labels[:, draw, None]).sum()
                found.append(torch.autograd.grad(picked, x, retain_graph=draw + 1 < self.draws)[0])
        return torch.stack(found)


def drawn(logprobs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """[n, draws] int64 labels of log-probabilities [n, vocabulary], by numbers in [0, 1): where the sums pass those."""
    sums = logprobs.double().exp_().cumsum(-1)
    found = torch.searchsorted(sums, (uniform * sums[:, -1:]).contiguous(), right=True)
    return found.clamp_(max=sums.shape[1] - 1)


def uniform(count: int, key: Sequence[int]) -> torch.Tensor:
    """[n] float64 in [0, 1), the same for the same key, and unlike those of any other."""
    seed = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little", signed=True))
    return torch.rand(count, generator=generator, dtype=torch.float64)
