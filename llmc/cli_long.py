"""`llmc check --long` by the runtime alone: what an artifact still finds in long windows, without the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from llmc import terminal
from llmc.contracts.long_context import LongContextRecord, RecallRecord
from llmc.runtime.long_context import DEPTHS, ask, lengths, needles, recall
from llmc.tables import table

if TYPE_CHECKING:
    from llmc.runtime.model import Model


def show_long(model: Model, artifact: str, reference: Path | None, longest: int | None, as_json: bool) -> None:
    """Measure, and print what was found."""
    from llmc.progress import Display
    from llmc.runtime.reference import read_reference

    filler = read_reference(model.artifact, reference)["input_ids"]
    found, progress = list[RecallRecord](), Display(terminal.console(stderr=True))
    for length in lengths(model.context, longest):
        sought = needles(model.tokenizer, filler, length)
        said = []
        with progress.stage(f"windows of {length:,} tokens"):
            for row in range(len(sought.ids)):
                said.append(ask(model.score, sought, row))
                progress("log-likelihood of answers", (row + 1) * length, sought.ids.size)
        known = {name: value for name, value in asdict(recall(sought, said)).items() if value is not None}
        found.append(RecallRecord.model_validate(known))
    record = LongContextRecord(artifact=artifact, backend=model.backend_info, context=model.context, lengths=found)
    if as_json:
        terminal.print_json(record.to_json())
    else:
        for each in recall_tables(found, f"{artifact}, {model.backend_info.partition(' ')[0]}: found in long windows"):
            terminal.print_table(each)


def recall_tables(lengths: Sequence[RecallRecord], title: str = "found in long windows") -> list[Table]:
    """Log-likelihood of the right answer by length, and by length and depth; with an original, of both."""
    compared = any(each.logprob_original is not None for each in lengths)
    columns = ["original", "artifact", "change", "found", "KL"] if compared else ["log p of the answer", "found"]
    made = table(title, "tokens", *columns)
    depths = table("log p of the answer, by where the sentence stands", "tokens", *(f"{each:.0%}" for each in DEPTHS))
    for each in lengths:
        value = f"{each.logprob:.2f} ± {each.logprob_stderr:.2f}"
        cells, places = [value, f"{each.recalled:.0%}"], [f"{value:.1f}" for value in each.by_depth]
        before, right = each.logprob_original, each.recalled_original
        if before is not None and right is not None:
            change = f"{each.logprob - before:+.2f} ± {each.change_stderr or 0:.2f}"
            kl = "" if each.kl_mean is None else f"{each.kl_mean:.4f} ± {each.kl_mean_stderr:.4f}"
            cells = [f"{before:.2f}", f"{each.logprob:.2f}", change, f"{right:.0%} → {each.recalled:.0%}", kl]
            its = each.by_depth_original or each.by_depth
            places = [f"{y:.1f} ({y - x:+.1f})" for x, y in zip(its, each.by_depth, strict=True)]
        made.add_row(f"{each.length:,}", *cells)
        depths.add_row(f"{each.length:,}", *places)
    return [made, depths]
