"""Prints how many bytes a second these threads read from memory. Argument: threads."""

import sys
import time

import torch

BYTES = 1 << 30  # much more than any cache holds
ROUNDS = 8

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    numbers = torch.ones(BYTES // 4)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    print(BYTES / best)
