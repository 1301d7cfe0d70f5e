"""The section about speed, of an artifact that was benchmarked."""

from __future__ import annotations

from llmc.contracts.report import Report, SpeedRecord
from llmc.page.blocks import Figure, Paragraph, Section, Table
from llmc.page.charts import lying_bars
from llmc.progress import size


def sections(report: Report) -> list[Section]:
    """Nothing of one that was not."""
    return [] if report.speed is None else [_speed(report.speed)]


def _speed(speed: SpeedRecord) -> Section:
    rows = [
        (_name(each.batch, each.prompt_tokens, each.draft_tokens), each.decode, None, f"{each.decode:,.1f}")
        for each in speed.timings
    ]
    body = [
        (
            _name(each.batch, each.prompt_tokens, each.draft_tokens),
            f"{each.prefill:,.0f}",
            f"{each.decode:,.1f}",
            f"{each.tokens_per_step:.2f}",
            "–" if each.acceptance is None else f"{each.acceptance:.1%}",
        )
        for each in speed.timings
    ]
    head = ("what", "prefill, tokens/s", "decode, tokens/s", "tokens a step", "drafts accepted")
    table = Table("Speed", head, body)
    memory = f"{size(speed.memory_loaded)} of memory when it is loaded, {size(speed.memory_peak)} at most"
    cache = f"{size(speed.cache_bytes_per_token)} of cache a token"
    told = f"On {speed.backend}: {memory}, {cache}. Loaded in {speed.load_seconds:.1f} s."
    shown = Figure("Decoding", "Tokens per second, all rows together.", lying_bars(rows), table)
    return Section("speed", "Speed", "Speed", [Paragraph(told), shown])


def _name(batch: int, prompt: int, drafts: int) -> str:
    rows = f"{batch} × " if batch > 1 else ""
    ahead = f", {drafts} draft{'s' if drafts > 1 else ''}" if drafts else ""
    return f"{rows}{prompt:,} prompt tokens{ahead}"
