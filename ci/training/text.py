"""Training and held-out documents: Python's own library and documentation, or text files of one's own."""

import random
from pathlib import Path

from llmc.text_sources import python_documents as all_python_documents


def python_documents() -> tuple[list[str], list[str]]:
    """The documents of `builtin:python-docs`: those to train on (shuffled once), and those held out for checks."""
    documents = list(all_python_documents())
    train = [text for held_out, text in documents if not held_out]
    random.Random(0).shuffle(train)
    return train, [text for held_out, text in documents if held_out]


def file_documents(paths: list[Path], characters: int = 8000) -> tuple[list[str], list[str]]:
    """Documents of about `characters` each from text files of one's own; every 25th is held out."""
    pieces = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        pieces += [text[i : i + characters] for i in range(0, len(text), characters)]
    train = [piece for i, piece in enumerate(pieces) if i % 25]
    random.Random(0).shuffle(train)
    return train, pieces[::25]
