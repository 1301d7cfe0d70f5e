"""ONNX Runtime, imported here and nowhere else, with its reports to its maker turned off.

From release 1.29 on, `import onnxruntime` alone writes an identifier of this device and a database of events below the
user's cache, and sends them over the network later: names of models, paths, errors. The environment variable
ORT_DISABLE_TELEMETRY turns that off before the import; whoever has set it, to 0 say, keeps what they chose. When
something else has imported it before, the identifier and a first event about this machine are there already; what
would follow is turned off, and a warning says so.

    from llmc.runtime.quiet_onnxruntime import onnxruntime
"""

from __future__ import annotations

import os
import sys
import warnings

VARIABLE = "ORT_DISABLE_TELEMETRY"

_chosen = bool(os.environ.get(VARIABLE))
_imported = "onnxruntime" in sys.modules
if not _chosen:
    os.environ[VARIABLE] = "1"

import onnxruntime  # noqa: E402  # after the variable is set

if _imported and not _chosen:
    onnxruntime.disable_telemetry_events()
    warnings.warn(
        "onnxruntime was imported before llmc and has a report about this machine to send to its maker; "
        f"set {VARIABLE}=1 in the environment to prevent that",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = ["onnxruntime"]
