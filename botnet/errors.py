"""The error that users meet when what they gave cannot be used."""

from collections.abc import Sequence


class DataError(ValueError):
    """Something given cannot be used as it is; the message names the file, the record and the remedy."""

    sample: int | None = None  # index of the broken sample, if it is another than the one asked for


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
