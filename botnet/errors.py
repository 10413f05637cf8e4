"""Errors that a user can fix, by kind, and helpers for their messages."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BotnetError(Exception):
    """An error that the user can fix; the message says what was given, what is expected and what to do.

    The command prints the message and exits with status 2. Every other exception is a bug and shows its
    traceback.
    """


class DataError(BotnetError, ValueError):
    """A data set, an image, a record or a label map that cannot be used as it is; the message names it."""

    sample: int | None = None  # index of the broken sample, where it is not the requested one


class ConfigError(BotnetError, ValueError):
    """An option, an argument or a recipe value that cannot be used, alone or with the others."""


class CheckpointError(BotnetError, ValueError):
    """A file of weights or a checkpoint that is missing, broken, of another network, or cannot be written."""


class TrainingError(BotnetError, RuntimeError):
    """A run that cannot continue: a loss that is not finite, a full disk, a device that is not available."""


def first_few(names: Sequence[str]) -> str:
    """The first five of many names, for a message; ``"none"`` if there are none."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean A, B?"`` with the known names closest to a misspelt one; empty if none is close."""
    near = get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
