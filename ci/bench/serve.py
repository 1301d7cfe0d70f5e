#!/usr/bin/env python3
"""`llmc serve` by the number of clients: tokens a second and latencies, in a running batch and one at a time.

    python ci/bench/serve.py build/quickstart
    python ci/bench/serve.py build/quickstart --clients 1 8 --requests 16 --threads 4

Each client asks for one answer after the other, as streams. The servers run one after the other and get the same
prompts; server and clients share the machine. A first round, which is not counted, has caches made and kernels loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import aiohttp
from rich.console import Console
from rich.table import Table


@dataclass
class Answered:
    """One request: seconds to the first token, and to the end; tokens."""

    first: float
    whole: float
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[0, 1], help="with the running batch")
    args = parser.parse_args()
    servers = [("one at a time", ["--batch", "1"])]
    servers += [(f"running batch, {drafts} drafts", ["--draft-tokens", str(drafts)]) for drafts in args.draft_tokens]
    table = Table(
        "server", "clients", "tokens/s", "first token p50", "p99", "answer p50", "p99", title=str(args.artifact)
    )
    for name, options in servers:
        for clients, found, seconds in asyncio.run(measured(args, options)):
            first, whole = ([getattr(each, kind) * 1000 for each in found] for kind in ("first", "whole"))
            cells = [f"{sum(each.tokens for each in found) / seconds:.0f}"]
            cells += [f"{percentile(values, at):.0f} ms" for values in (first, whole) for at in (50, 99)]
            table.add_row(name, str(clients), *cells)
        Console(stderr=True).print(f"measured: {name}", highlight=False)
    Console(width=120).print(table)


def percentile(values: list[float], at: int) -> float:
    return quantiles(values, n=100, method="inclusive")[at - 1] if len(values) > 1 else values[0]


async def measured(args: argparse.Namespace, options: list[str]) -> list[tuple[int, list[Answered], float]]:
    """For each number of clients the answers, and the seconds that all took."""
    command = [sys.executable, "-m", "llmc.cli", "serve", str(args.artifact), "--port", "0", "--json"]
    command += ["--threads", str(args.threads), "--queue", "1000", *options]
    environment = {name: value for name, value in os.environ.items() if name != "LLMC_TOKEN"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    try:
        url = json.loads(process.stdout.readline())["url"]
        text = Path(argparse.__file__).read_text(encoding="utf-8")
        found = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for number, clients in enumerate([max(args.clients), *args.clients]):
                start, turns = time.perf_counter(), range(args.requests if number else 1)
                starts = [[97 * (place + turn * clients) for turn in turns] for place in range(clients)]
                prompts = [[text[at : at + 100] for at in each] for each in starts]
                answered = await asyncio.gather(*(client(session, url, each, args.new_tokens) for each in prompts))
                if number:
                    every = [one for each in answered for one in each]
                    found.append((clients, every, time.perf_counter() - start))
        return found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def client(session: aiohttp.ClientSession, url: str, prompts: list[str], new_tokens: int) -> list[Answered]:
    """One answer after the other."""
    found = []
    for prompt in prompts:
        asked = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        start, first, tokens = time.perf_counter(), 0.0, 0
        async with session.post(f"{url}/v1/completions", json=asked) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - start
                    usage = json.loads(line[6:])["usage"]
                    tokens = usage["completion_tokens"] if usage else tokens
        found.append(Answered(first, time.perf_counter() - start, tokens))
    return found


if __name__ == "__main__":
    main()
