"""Arrays in one file that all processes of a machine map into memory, and the cache of such files."""

import hashlib
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from botnet import __version__
from botnet.caching import alone, cache_folder

logger = logging.getLogger(__name__)

FORMAT = 1  # of the packed file; raise it when its contents change
# Bytes of a source file: smaller ones are read in a tenth of a second.
SMALLEST_CACHED = 2**24
ALIGNMENT = 64  # bytes
BLOCK = 2**22  # bytes that are read at once
PIECES = 2**12  # that are written at once

Parts = Mapping[str, np.ndarray | Sequence[bytes | msgspec.Raw]]


class Footer(msgspec.Struct):
    """The end of a packed file: where each array lies, and what belongs to them.

    Behind it stand its length in 8 bytes and the checksum of all that is before in 4.
    """

    arrays: dict[str, tuple[str, list[int], int]]  # type, shape, first byte
    about: dict[str, Any]


class Pack:
    """Arrays that are mapped from a file, or lie in this process's memory.

    Pickled, a mapped one is its path: workers map the same file, however they were started.

    Args:
        source: path of a file that :func:`write_pack` wrote, or its contents.

    Attributes:
        arrays: by name, read-only.
        about: what was written with them.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        self._open()

    def _open(self) -> None:
        if isinstance(self._source, bytes):
            contents = np.frombuffer(self._source, np.uint8)
        else:
            contents = np.memmap(self._source, np.uint8, mode="r")
        end = len(contents) - 12
        start = end - int.from_bytes(contents[end : end + 8].tobytes(), "little")
        footer = msgspec.json.decode(contents[start:end].tobytes(), type=Footer)
        self.about = footer.about
        self.arrays: dict[str, np.ndarray] = {}
        for name, (kind, shape, first) in footer.arrays.items():
            size = np.dtype(kind).itemsize * math.prod(shape)
            self.arrays[name] = np.asarray(contents[first : first + size]).view(kind).reshape(shape)

    def __getstate__(self) -> Path | bytes:
        return self._source

    def __setstate__(self, state: Path | bytes) -> None:
        self._source = state
        self._open()


def write_pack(file: IO[bytes], parts: Parts, about: dict[str, Any]) -> None:
    """Write arrays one after another; one of bytes may be given in pieces."""
    arrays: dict[str, tuple[str, list[int], int]] = {}
    checksum = position = 0

    def put(block: Any) -> None:
        nonlocal checksum, position
        checksum, position = zlib.crc32(block, checksum), position + len(block)
        file.write(block)

    for name, part in parts.items():
        put(bytes(-position % ALIGNMENT))
        first = position
        if isinstance(part, np.ndarray):
            put(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            arrays[name] = (part.dtype.str, list(part.shape), first)
        else:
            for start in range(0, len(part), PIECES):
                put(b"".join(part[start : start + PIECES]))
            arrays[name] = ("|u1", [position - first], first)
    footer = msgspec.json.encode(Footer(arrays, about))
    put(footer + len(footer).to_bytes(8, "little"))
    file.write(checksum.to_bytes(4, "little"))


def _is_whole(path: Path) -> bool:
    """Whether the checksum of a packed file is right. It is read, since a mapping would count as memory."""
    checksum, left = 0, path.stat().st_size - 4
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(BLOCK, left))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        return left == 0 and file.read() == checksum.to_bytes(4, "little")


Build = Callable[[], tuple[Parts, dict[str, Any]]]


def packed(contents: bytes, build: Build, cache: bool = True) -> Pack:
    """The arrays that are made of a file: mapped from the cache, or made now and kept there.

    The cache is the folder ``botnet`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``): it
    serves every run on the machine, and data folders are often read-only. A file there is named by a hash of
    the contents, of this package's version and of the format: a stale one is never taken, and copies of the
    data share one. Where several processes start at once, one makes it and the others wait. Small files are
    not cached. Without the cache the arrays lie in this process's memory.

    Args:
        contents: of the source file.
        build: makes the arrays, and what belongs to them.
        cache: use the cache.
    """
    if not cache or len(contents) < SMALLEST_CACHED:
        return _in_memory(*build())
    size = len(contents)
    with ThreadPoolExecutor(1) as thread:
        name = thread.submit(_name, contents)
        # Without a file of this size there is nothing to wait for.
        if _of_size(size) and (found := _cached(cache_folder() / name.result())):
            return found
        with alone(cache_folder() / f"{size}.lock") as held:
            if held:  # what a killed process left
                for partial in cache_folder().glob(f".{size}-*"):
                    partial.unlink(missing_ok=True)
            if _of_size(size) and (found := _cached(cache_folder() / name.result())):
                return found  # the process before this one has made it
            parts, about = build()
            path = cache_folder() / name.result()
            try:
                return _store(path, parts, about)
            except OSError as error:
                logger.warning(
                    "%s: cannot be written (%s); the data are kept in memory", path, error.strerror
                )
                return _in_memory(parts, about)


def _name(contents: bytes) -> str:
    key = hashlib.sha256(contents)
    key.update(f"{FORMAT} {__version__}".encode())
    return f"{len(contents)}-{key.hexdigest()[:32]}.pack"


def _of_size(size: int) -> bool:
    return any(cache_folder().glob(f"{size}-*.pack"))


def _in_memory(parts: Parts, about: dict[str, Any]) -> Pack:
    file = BytesIO()
    write_pack(file, parts, about)
    return Pack(file.getvalue())


def _cached(path: Path) -> Pack | None:
    """A cached file, if there is a sound one."""
    try:
        if _is_whole(path):
            return Pack(path)
        problem = "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problem = str(error.strerror)
    logger.warning("%s: cannot be used (%s); it is made again", path, problem)
    return None


def _store(path: Path, parts: Parts, about: dict[str, Any]) -> Pack:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, partial = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with open(number, "wb") as file:
            write_pack(file, parts, about)
        # Another process may have been faster: then all map its file.
        if not (found := _cached(path)):
            os.replace(partial, path)
            found = Pack(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return found
