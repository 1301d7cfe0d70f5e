"""Prints an answer as it comes, and ends it early. The artifact's path is the argument; default: build/quickstart."""

import sys

from llmc.runtime import load

artifact = sys.argv[1] if len(sys.argv) > 1 else "build/quickstart"

with load(artifact) as model:
    stream = model.stream("import ", max_new_tokens=100, temperature=0)
    printed = ""
    for piece in stream:
        print(piece, end="", flush=True)
        printed += piece
        if len(printed) >= 60:
            stream.cancel()  # from this or any other thread
    print(f"\n[{stream.generation.finish_reason} after {len(stream.generation.token_ids)} tokens]")
