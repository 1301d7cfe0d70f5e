"""Names on the Hugging Face hub, and its client, with errors in one line; it tells the hub no more than it needs.

A leaf module: every room may import it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmc.errors import InputError, LlmcError, MachineError
from llmc.extras import install

# The client makes folders of both: no part of them is `..`, and a revision does not begin with a slash.
_NAME = re.compile(r"(?!.*\.\.)(\w[\w.-]*/[\w.-]+)(?:@(\w[\w./-]*))?")


@dataclass(frozen=True)
class HubName:
    """A repository of models, and a branch, pull request or commit of it; None: what its main branch holds."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Of `org/name` or `org/name@revision`; None for what is no such name."""
        match = _NAME.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@contextmanager
def client(subject: str, lacking: str) -> Iterator[Any]:
    """The module, for what is called `subject` in messages and was asked for because it is `lacking` here."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise MachineError(f"{subject}: {lacking}; to get it from the hub: {install('huggingface_hub')}") from error
    try:
        yield huggingface_hub
    except LlmcError:  # ours, about what was downloaded
        raise
    except Exception as error:  # whatever the network, the hub and its client come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, OSError) and type(error).__module__ in ("builtins", "json.decoder"):
            raise InputError(
                f"{subject}: the hub's client cannot read what is there ({reason}); choose another repository or "
                "@revision"
            ) from error
        raise MachineError(f"{subject}: {lacking}, and the hub says: {reason}") from error
