"""What goes wrong for reasons that a user can mend, by kind, and what its messages are made of."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BotnetError(Exception):
    """Something that the user can mend; the message says what was given, what is expected and the remedy.

    The command prints the message and ends with status 2. Every other exception is a bug and shows its
    traceback.
    """


class DataError(BotnetError, ValueError):
    """A data set, an image or a record that cannot be used as it is; the message names it."""

    sample: int | None = None  # index of the broken sample, if it is another than the one asked for


class ConfigError(BotnetError, ValueError):
    """An option, an argument or a recipe that cannot be used, alone or beside the others."""


class CheckpointError(BotnetError, ValueError):
    """A file of weights or a checkpoint that is missing, broken, of something else, or cannot be written."""


class TrainingError(BotnetError, RuntimeError):
    """A run that cannot go on: a loss that is not finite, a full disk, a device that is not there."""


def first_few(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean A, B?"`` with the known names nearest to a misspelt one; empty if none is near."""
    near = get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
