"""`llmc check`: what an artifact lost, by its own record or against the original itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import (
    Against,
    AgainstOutput,
    Artifact,
    Backend,
    CheckLength,
    CheckText,
    CheckTokens,
    Device,
    Long,
    Longest,
    Memory,
    Ranks,
    Threads,
    Verify,
    located,
    refuse_given,
    verify_first,
)  # fmt: skip
from llmc.errors import GateError

if TYPE_CHECKING:
    from llmc.runtime.model import Model


def check(
    artifact: Artifact,
    reference: Annotated[
        Path | None, typer.Option(help="What the original said, for an artifact that was built without it.")
    ] = None,
    against: Against = None,
    text: CheckText = None,
    tokens: CheckTokens = None,
    length: CheckLength = None,
    long: Long = False,
    longest: Longest = None,
    memory: Memory = None,
    output: AgainstOutput = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted comparison left.")] = False,
    verify: Verify = False,
    backend: Backend = None,
    threads: Threads = None,
    device: Device = None,
    ranks: Ranks = 1,
    as_json: Json = False,
) -> None:
    """Compare an artifact with what the original said, on this machine. Needs neither torch nor the original.

    Limits of the loss are the recipe's. Beside them, gates that hold for every model tell a fault from a loss: what the
    runtime says against what torch said of the same weights, and graphs, tokenizer, chat template and MTP acceptance
    against what they were when they were built. A gate that is missed ends with exit code 3.

    With `--against ORIGINAL` everything is computed anew from the weights of both, in torch, one layer in memory: the
    exact divergence, and how far layers, routers and experts are apart. ARTIFACT then may also be a checkpoint that
    another tool made: GPTQModel, llm-compressor, ModelOpt, AutoRound. A comparison that was interrupted goes on where
    it stopped when the same command is given again.

    With `--long` a sentence with a number is planted in long windows of the check text, and asked for at their end:
    what counts is the log-likelihood of the right answer, of the artifact alone or beside the original's.

    **Examples**

    `llmc check build/quickstart`

    `llmc check build/quickstart --backend tensorrt-rtx`

    `llmc check build/quickstart --against builtin:tiny-deepseek-v3`

    `llmc check build/quickstart --long`

    `llmc check Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4 --against Qwen/Qwen2.5-7B-Instruct --text chats.jsonl --memory 8GiB`
    """
    texts = tuple(text or ())
    if against is not None:
        several = ranks if ranks > 1 else None
        refuse_given("--against", {"--backend": backend, "--threads": threads, "--device": device, "--ranks": several})
        from llmc.against import Asked
        from llmc.cli_against import show_against

        verify_first(artifact, verify)
        asked = Asked(str(artifact), against, texts, tokens, length, reference, memory, output, fresh, long, longest)
        show_against(asked, as_json)
        return
    alone = {"--text": text, "--tokens": tokens, "--length": length, "--memory": memory, "--output": output}
    refuse_given("a check without --long", {} if long else {"--longest": longest})
    refuse_given("a check without --against", alone | {"--fresh": fresh or None})
    artifact = located(artifact, verify)
    from llmc.runtime import load

    with load(artifact, backend, threads, device=device, ranks=ranks) as model:
        if long:
            from llmc.cli_long import show_long

            show_long(model, str(artifact), reference, longest, as_json)
        else:
            _replay(model, artifact, reference, as_json)


def _replay(model: Model, artifact: Path, reference: Path | None, as_json: bool) -> None:
    from llmc.contracts.manifest import Checks
    from llmc.runtime.reference import read_reference
    from llmc.runtime.where import beginning, in_text
    from llmc.summary import check_rows, missed_line, where_rows
    from llmc.tables import rows_table, windows_table, worst_table

    report = model.check(reference=reference)
    checks = Checks.model_validate(report.to_json())
    if as_json:
        terminal.print_json(checks.to_json() | {"backend": model.backend_info})
    else:
        rows = [("backend", model.backend_info), *check_rows(checks), *where_rows(checks)]
        terminal.print_table(rows_table(str(artifact), rows))
        ids = read_reference(model.artifact, reference)["input_ids"]
        texts = [in_text(each, ids, model.tokenizer.decode) for each in report.worst]
        terminal.print_table(worst_table(report.worst, texts))
        begin = [beginning(each, ids, model.tokenizer.decode) for each in report.worst_windows]
        terminal.print_table(windows_table(report.worst_windows, begin))
    if checks.missed:
        raise GateError(
            f"{artifact}: {missed_line(checks.missed)}; "
            + (
                "it does not do here what it was built to do: try another backend, or download it again"
                if any(gate.by_default for gate in checks.missed)
                else "on this backend the artifact is further from the original than its recipe allows"
            )
        )
