"""Broken input: how many cases, bytes that are nearly right, and a watch on the file system."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("BOTNET_FUZZ_CASES", "0"))  # over all tests of tests/fuzz; 0: as in make test


def cases(usual: int) -> settings:
    """Settings of a test that has ``usual`` of 300 cases.

    They are the same ones every time in ``make test``, and others each time in ``make fuzz``.
    """
    return settings(
        max_examples=max(1, round(usual * CASES / 300)) if CASES else usual,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def nearly(draw: Any, whole: bytes) -> bytes:
    """Bytes with a few of them changed, lost or repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("change", "zeros", "lose", "repeat", "insert", "cut"))):
            case "change":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "zeros":
                data[at : at + length] = bytes(len(data[at : at + length]))
            case "lose":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del data[at:]
    return bytes(data)


@contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    """Check that no file below a folder, which becomes the working directory, appears or changes."""
    before, here = _files(folder), Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
    assert _files(folder) == before


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


class Trap:
    """A pickle of it makes a file when code in a pickle is executed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.file),))
