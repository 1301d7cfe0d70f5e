"""`llmc check --against`: what it shows."""

from __future__ import annotations

from rich.table import Table

from llmc import terminal
from llmc.against import Asked, Found, check_against
from llmc.cli_long import recall_tables
from llmc.contracts.against import AgainstRecord
from llmc.contracts.layer_errors import LayerErrors
from llmc.errors import GateError
from llmc.progress import Display, size
from llmc.runtime.where import WorstToken, WorstWindow, beginning, in_text
from llmc.summary import check_rows, missed_line, where_rows
from llmc.tables import rows_table, table, windows_table, worst_table


def show_against(asked: Asked, as_json: bool) -> None:
    """Compare, and print what was found; GateError where the recipe of the artifact allows less."""
    found = check_against(asked, Display(terminal.console(stderr=True)))
    checks = found.record.checks
    if as_json:
        terminal.print_json(found.record.to_json())
    else:
        for each in _tables(found):
            terminal.print_table(each)
    if checks.missed:
        raise GateError(
            f"{asked.artifact}: {missed_line(checks.missed)}; the weights alone are further from the original than the "
            "artifact's recipe allows"
        )


def _tables(found: Found) -> list[Table]:
    record, worst = found.record, [WorstToken(**vars(each)) for each in found.record.checks.worst]
    rows = [*_rows(record), *check_rows(record.checks), *where_rows(record.checks)]
    overview = rows_table(f"{record.artifact} against {record.original}", rows)
    texts = [in_text(each, found.ids, found.decode) for each in worst]
    long = recall_tables(record.long) if record.long else []
    windows = [WorstWindow(**vars(each)) for each in record.checks.worst_windows]
    begin = [beginning(each, found.ids, found.decode) for each in windows]
    return [
        overview, layer_table(record.layers), *long, worst_table(worst, texts), windows_table(windows, begin),
    ]  # fmt: skip


def _rows(record: AgainstRecord) -> list[tuple[str, str]]:
    layout = f", as {record.layout} stores them" if record.layout else ""
    share = record.bytes / record.bytes_original
    text = ", ".join(each.text for each in record.text) or "the text on record"
    return [
        *(("note", note) for note in record.notes),
        ("weights", f"{size(record.bytes_original)} → {size(record.bytes)} ({share:.0%}){layout}"),
        ("text", f"{text}: {record.windows:,} windows of {record.length:,} tokens"),
    ]


def layer_table(layers: list[LayerErrors]) -> Table:
    """Layers with their errors. Of those with experts: the share of choices that are alike, of tokens whose whole set
    is, and of the load that went to others; the mean error of experts, and which is furthest off.
    """
    made = table("layers", "", "error", "cosine", "alike", "same set", "moved", "experts", "worst")
    for each in layers:
        routing = each.routing
        cells = [str(each.layer), f"{each.error:.4f}", f"{each.cosine:.5f}"]
        if routing is not None:
            moved = sum(abs(y - x) for x, y in zip(routing.load_original, routing.load, strict=True)) / 2
            known = {number: error for number, error in enumerate(routing.expert_errors) if error is not None}
            cells += [f"{routing.agreement:.1%}", f"{routing.identical:.1%}"]
            cells += [f"{moved / sum(routing.load_original):.1%}"]
            if known:
                worst = max(known, key=known.__getitem__)
                cells += [f"{sum(known.values()) / len(known):.3f}", f"{known[worst]:.3f} ({worst})"]
        made.add_row(*cells)
    return made
