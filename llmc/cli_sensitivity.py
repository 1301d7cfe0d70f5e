"""`llmc sensitivity`: what every role loses per scheme, and what every size would cost."""

from __future__ import annotations

from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import GpuMemory, Memory, Output, Recipe


def sensitivity(
    recipe: Recipe,
    output: Output = None,
    memory: Memory = None,
    gpu_memory: GpuMemory = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run measured or left.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what each module loses per scheme, in the KL divergence of what the model says, and show what any size
    would cost.

    The measurement lies beside OUTPUT; builds and plans of this model take it up, whatever their budget. One that was
    interrupted goes on where it stopped. Of a recipe without a budget only model and calibration text count.

    **Examples**

    `llmc sensitivity quickstart`

    `llmc sensitivity ~/models/Qwen2.5-7B-Instruct --json`
    """
    from llmc.budget_tables import budget_tables, role_table
    from llmc.job import Limits
    from llmc.measuring import measure_sensitivity
    from llmc.progress import Display

    console = terminal.console(stderr=True)
    found = measure_sensitivity(recipe, output, Limits(memory, gpu_memory), fresh, Display(console))
    if as_json:
        terminal.print_json(found.to_json())
        return
    for table in [role_table(found), *budget_tables(found.budget)]:
        terminal.print_table(table)
