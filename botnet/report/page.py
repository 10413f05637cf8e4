"""A report as one HTML file, which needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from botnet import __version__


@dataclass(frozen=True)
class Table:
    """A table: its heads, the text of its cells by row, and which columns hold words, not numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """An image inside of the page, and what it shows."""

    source: str
    text: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a report: a title, and below it tables, a text and images."""

    title: str
    tables: Sequence[Table] = ()
    text: str = ""
    images: Sequence[Picture] = ()


@dataclass(frozen=True)
class Section:
    """A run: its name, one line on it, what is missing, its curves and the parts of its report."""

    name: str
    summary: str
    curves: str | None = None
    missing: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def page(title: str, runs: Sequence[Section]) -> str:
    """The HTML of a report."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("botnet.report").joinpath("page.html.j2").read_text("utf-8"))
    return template.render(title=title, runs=runs, version=__version__)
