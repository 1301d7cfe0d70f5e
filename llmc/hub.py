"""The client of the Hugging Face hub, with its errors in one line; it tells the hub no more than it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmc.errors import InputError, LlmcError, MachineError
from llmc.extras import install


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
