"""Printing tables."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(*tables: "RenderableType") -> None:
    """Print tables on stdout."""
    from rich.console import Console

    # A pipe has no width: the usual 80 columns would fold the tables.
    Console(width=None if sys.stdout.isatty() else 140).print(*tables)
