"""Names of files that come from somebody else: a hub's list, an index, a manifest.

A leaf module: every room may import it.
"""

from __future__ import annotations

import unicodedata

_MAX_BYTES = 200  # 255 is what file systems take; work goes on under longer names, such as <name>.partial
_SEPARATORS = frozenset('/\\:*?"<>|')  # of paths, and what Windows has a meaning for
_PORTS = (f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³")
_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS))  # of Windows
# Control characters, half characters, and what is not seen or turns the direction of writing.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def is_bare_file_name(name: object, suffix: str = "") -> bool:
    """Whether `name`, which ends in `suffix`, joined to a folder can only mean a visible file right in that folder, on
    every system: no path, no hidden file, no device, nothing that a terminal would obey.
    """
    if not isinstance(name, str) or not name or not name.endswith(suffix) or name == suffix:
        return False
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return False
    if not _SEPARATORS.isdisjoint(name) or any(unicodedata.category(character) in _UNSEEN for character in name):
        return False
    return len(name.encode()) <= _MAX_BYTES and name.partition(".")[0].rstrip().upper() not in _DEVICES
