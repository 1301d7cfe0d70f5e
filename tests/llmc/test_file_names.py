"""Which names of others are joined to a folder."""

import pytest

from llmc.file_names import is_bare_file_name


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00002.safetensors", "a b.safetensors", "Modèle.safetensors"]
)
def test_names_of_files(name: str) -> None:
    assert is_bare_file_name(name)
    assert is_bare_file_name(name, ".safetensors")


PATHS = [
    "/etc/passwd",
    "../a",
    "a/../b",
    "a/b",
    "a\\b",
    "..\\a",
    "C:a",
    "C:\\a",
    "//host/a",
    "",
    ".",
    "..",
    "...",
    ".a",
]
CHARACTERS = [
    "a\0",
    "a\nb",
    "a\x1b]52;c;eA==\x07",
    "a\x7f",
    "a\x9b",
    "a\u202eb",
    "a\u2066b",
    "a\u2028",
    "a\u200bb",
    "\ud800",
]
WINDOWS = ["a.", "a ", " a", "a*", "a?", 'a"', "a|b", "<a>", "con", "NUL.safetensors", "Lpt1.x.y", "COM¹"]


@pytest.mark.parametrize("name", [*PATHS, *CHARACTERS, *WINDOWS, "a" * 201, "ä" * 101, None, 7, b"a", ["a"]])
def test_what_is_none(name: object) -> None:
    assert not is_bare_file_name(name)
    assert not is_bare_file_name(name, ".safetensors")


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors.bin", ".safetensors", "model.SAFETENSORS", "a"])
def test_the_end_of_a_name(name: str) -> None:
    assert not is_bare_file_name(name, ".safetensors")
