"""Many file names in one array: a million take less memory than as strings, and workers share it."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """File names, each made when it is asked for.

    Lists of strings have a count of references in each, so every worker that reads them gets a copy.

    Args:
        names: of files, also such as are not valid Unicode.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(errors="surrogateescape") for name in names]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        first, last = self._ends[index : index + 2]
        return self._text[first:last].tobytes().decode(errors="surrogateescape")


class Labelled(Sequence[tuple[str, int]]):
    """Paths and labels, as timm's readers of folders keep them in a list.

    Args:
        root: folder of all paths.
        samples: their paths, which begin with the root, and labels.
    """

    def __init__(self, root: str, samples: Sequence[tuple[str, int]]) -> None:
        self.root = root
        self.names = Names(path.removeprefix(root) for path, _ in samples)
        self.labels = np.array([label for _, label in samples], np.int32)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.root + self.names[index], int(self.labels[index])
