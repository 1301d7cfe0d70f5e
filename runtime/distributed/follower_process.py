"""The process of one of the other ranks. Its arguments are artifact and backend; its environment says the rest."""

from __future__ import annotations

import sys
from pathlib import Path

from llmc.errors import LlmcError
from llmc.runtime import distributed
from llmc.runtime.artifact import Artifact
from llmc.runtime.distributed.follower import ToldError
from llmc.runtime.distributed.place import Place


def main() -> None:
    try:
        artifact, backend = sys.argv[1:]
        place = Place.told()
        assert place is not None
        distributed.start(Artifact.open(Path(artifact)), backend, place.ranks)
    except LlmcError as error:
        if not isinstance(error, ToldError):
            print(f"llmc: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
