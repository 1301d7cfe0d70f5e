"""`llmc serve`: an artifact behind OpenAI's HTTP interface."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import (
    AddBos,
    Artifact,
    Backend,
    Device,
    DraftTokens,
    MostBody,
    Ranks,
    Speculative,
    Threads,
    Verify,
    located,
    text_of,
)

TOKEN_VARIABLE = "LLMC_TOKEN"


def serve(
    artifact: Artifact,
    host: Annotated[str, typer.Option(help="Where to listen. Others than this machine need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: the folder's name.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Holds the token that clients have to bring. Default: ${TOKEN_VARIABLE}, or none."
        ),
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let others than this machine come without a token.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="The most answers at once. Default: what the backend takes.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="The most answers that wait; more are told to come again.")] = 256,
    max_body: MostBody = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that answers have to end, once the server is told to.")
    ] = 30.0,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A chat template (jinja) in place of the model's own.")
    ] = None,
    add_bos: AddBos = None,
    speculative: Speculative = True,
    draft_tokens: DraftTokens = 1,
    verify: Verify = False,
    backend: Backend = None,
    threads: Threads = None,
    device: Device = None,
    ranks: Ranks = 1,
    as_json: Json = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's interface has it. Needs the extra `serve`.

    Paths: /v1/chat/completions, /v1/completions, /v1/models, /health, and /metrics for Prometheus. Answers join the
    running batch and leave it as they come; what has no row waits in a queue, and is told to come again (429) where
    that is full. A client that hangs up frees its rows. SIGTERM or Ctrl-C lets answers end, for `--grace` seconds.

    It listens on this machine alone unless `--host` says otherwise. With `--json` one line on standard output says
    where, once requests are taken.

    **Examples**

    `llmc serve build/quickstart`

    `llmc serve build/quickstart --host 0.0.0.0 --token-file token.txt --batch 16`

    `curl localhost:8000/v1/completions --json '{"prompt": "def ", "max_tokens": 32}'`
    """
    from llmc.runtime import load
    from llmc.serve.server import Options, checked_token, listen, token_of
    from llmc.serve.server import serve as run_server

    called = name or (artifact.resolve() if artifact.exists() else artifact).name
    artifact = located(artifact, verify)
    token = token_of(token_file) if token_file else os.environ.get(TOKEN_VARIABLE) or None
    if token and not token_file:
        checked_token(token, f"${TOKEN_VARIABLE}")
    options = Options(host, port, called, token, allow_anonymous, queue, batch, max_body or 16 << 20, grace)
    listen(options).close()  # what cannot be is told before a large model is loaded
    template = None if chat_template is None else text_of(chat_template)

    def ready(address: str) -> None:
        told = {"url": address, "model": called, "pid": os.getpid(), "backend": model.backend_info}
        if as_json:
            typer.echo(json.dumps(told))
        else:
            terminal.say(f"{called} on {address}/v1 ({model.backend_info}); Ctrl-C ends it\n")

    with load(artifact, backend, threads, speculative, draft_tokens, False, template, add_bos, device, ranks) as model:
        run_server(model, options, ready)
