"""Sections about what an artifact was made from, and by what."""

from __future__ import annotations

import yaml

from llmc.contracts.report import Report
from llmc.page.blocks import Block, Listing, Paragraph, Section, Table
from llmc.progress import size
from llmc.summary import tokenizer_rows


def sections(report: Report) -> list[Section]:
    """Texts, and where everything came from."""
    return [_texts(report), _provenance(report)]


def _texts(report: Report) -> Section:
    rows = [
        (
            purpose,
            each.text,
            "all" if each.available is None else f"{each.documents:,} of {each.available:,}",
            f"{each.tokens:,}",
            f"{each.dropped:.1%} of {each.cut:,} chats’ ends" if each.cut else "nothing",
        )
        for purpose, sources in report.texts.read.items()
        for each in sources
    ]
    blocks: list[Block] = [Paragraph(f"{report.texts.note}.")] if report.texts.note else []
    head = ("for", "text", "documents", "tokens", "left out")
    blocks += [Table("Texts that were read", head, rows, words=3)] if rows else []
    blocks += [Table("Tokenizer", ("what", ""), tokenizer_rows(report.tokenizer), words=2)] if report.tokenizer else []
    return Section("texts", "Calibration and check texts", "Texts", blocks)


def _provenance(report: Report) -> Section:
    source = report.source
    facts = [
        ("original", source.id),
        ("revision", source.revision or "a folder"),
        ("license", source.license or "not said"),
        ("built by", f"llmc {report.llmc_version}"),
        ("check text", "published with the artifact" if report.published_text else "not published"),
    ]
    recipe = yaml.safe_dump(report.recipe.to_json(), sort_keys=False, allow_unicode=True)
    versions = list(report.versions.items())
    digests = [(name, digest) for name, digest in source.files.items()]
    files = [(name, size(file.bytes), file.sha256) for name, file in report.files.items()]
    texts = list(zip(("calibration", "check"), report.texts.sha256, strict=False))
    blocks: list[Block] = [
        Table("Origin", ("what", ""), facts, words=2),
        Listing("The recipe, with all its defaults", recipe),
        Table("Packages that built it", ("package", "version"), versions, words=2, folded=True),
        Table("Files of the original", ("file", "SHA-256"), digests, words=2, folded=True),
        Table("Tokens of the texts", ("text", "SHA-256"), texts, words=2, folded=True),
        Table("Stages", ("stage", "key"), list(report.stages.items()), words=2, folded=True),
        Table("Files of this artifact", ("file", "bytes", "SHA-256"), files, words=3, folded=True),
    ]
    return Section(
        "provenance", "Provenance", "Provenance", [each for each in blocks if not isinstance(each, Table) or each.rows]
    )
