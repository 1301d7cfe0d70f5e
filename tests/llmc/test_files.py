"""What is opened and read of a folder that somebody else made."""

import math
import os
import socket
from pathlib import Path

import pytest

from llmc.errors import InputError
from llmc.files import leads_outside, open_regular, parse_json, read_json, read_regular


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"12345"
    assert read_regular(tmp_path / "link", limit=5) == b"12345"
    with pytest.raises(InputError, match="larger than the 4 bytes"):
        read_regular(tmp_path / "a", limit=4)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, said in {
            "fifo": "is a FIFO",
            "folder": "is a folder",
            "zero": "is a device",
            "socket": "is a socket",
            "loop": "cannot be read",
            "missing": "cannot be read",
            "nul\0": "not the name of a file",
            "half\ud800": "not the name of a file",
        }.items():
            with pytest.raises(InputError, match=said):
                open_regular(tmp_path / name)


def test_a_file_that_does_not_tell_its_size_is_read_to_the_limit() -> None:
    status = Path("/proc/self/status")  # says 0 bytes
    if not status.exists():
        pytest.skip("no /proc")
    with pytest.raises(InputError, match="larger than"):
        read_regular(status, limit=10)


def test_what_is_said_to_be_regular_and_has_nothing_to_read() -> None:
    log = Path("/proc/kmsg")
    if not os.access(log, os.R_OK):
        pytest.skip("no kernel log that may be read")
    with pytest.raises(InputError, match=r"cannot be read|larger than"):
        read_regular(log, limit=0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "no finite number"),
        (b'{"a": 1e999}', "no finite number"),
        (b'{"a": ' + b"9" * 4301 + b"}", "4,301 digits"),
        (b'{"a": ' + b"9" * 100 + b"}", "100 digits"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b'{"a": [["\\udfff"]]}', "half a character"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
        (b"[" + b"[]," * 2_000_001 + b"[]]", "items"),
        (b'"' + b"a" * (64 << 20) + "é".encode() + b'"', "beyond ASCII"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"{", "line 1"),
        (b"", "line 1"),
    ],
)
def test_json_that_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        parse_json(data)
    with pytest.raises(InputError, match=f"config.json: not valid JSON .*{said}"):
        read_json(tmp_path / "config.json", limit=1 << 27)


def test_infinity_is_read_where_that_is_said() -> None:
    data = b'{"time_step_limit": [0.0, Infinity]}'
    assert parse_json(data, infinity=True) == {"time_step_limit": [0.0, math.inf]}
    with pytest.raises(ValueError, match="no finite number"):
        parse_json(data)
    for other in (b"[NaN]", b"[-Infinity]", b"[1e999]"):
        with pytest.raises(ValueError, match="no finite number"):
            parse_json(other, infinity=True)


def test_json_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_max_length": 1000000000000000019884624838656, "a": [-1.5e3, "é\\ud83d\\ude00", null, true, {}]}'
    )
    assert read_json(tmp_path / "config.json", limit=1000) == {
        "model_max_length": 1000000000000000019884624838656,
        "a": [-1500.0, "é😀", None, True, {}],
    }
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object, not list"):
        read_json(tmp_path / "config.json", limit=1000)


def test_links_that_lead_outside(tmp_path: Path) -> None:
    """A hub's cache is folders of links into `blobs`, whose files are named by their hash."""
    digest = "0123456789abcdef" * 4
    snapshot, blobs = tmp_path / "models--a--b/snapshots/main", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / digest).write_text("{}")
    shared = "ab" * 32
    for store in (tmp_path / "blobs" / "ab", tmp_path / "other" / "blobs"):  # of the whole cache, and of another
        store.mkdir(parents=True)
        (store / shared).write_text("{}")
    (blobs / shared).symlink_to(f"../../blobs/ab/{shared}")
    (tmp_path / "secret").write_text("hunter2")
    (blobs / digest[::-1]).symlink_to("../../secret")
    for name, target in {
        "hub": f"../../blobs/{digest}",
        "shared": f"../../blobs/{shared}",
        "another": f"../../../other/blobs/{shared}",
        "same": "plain",
        "out": "../../../secret",
        "absolute": str(tmp_path / "secret"),
        "chain": "out",
        "blob": f"../../blobs/{digest[::-1]}",
        "nothing": "missing",
        "circle": "circle",
    }.items():
        (snapshot / name).symlink_to(target)
    (snapshot / "plain").write_text("{}")
    (tmp_path / "elsewhere").symlink_to(snapshot)  # the folder itself may be anywhere
    for folder in (snapshot, tmp_path / "elsewhere"):
        outside = {path.name for path in folder.iterdir() if leads_outside(path)}
        assert outside == {"out", "absolute", "chain", "blob", "nothing", "circle", "another"}
