"""Recipes and the base recipes they build on."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml

from botnet.errors import DataError

RECIPES = Path(str(files("botnet"))) / "recipes"


def with_bases(arguments: Sequence[str]) -> list[str]:
    """The arguments, every recipe preceded by the one that it names as its ``base``, and that by its own.

    A file ``recipes/...`` that does not exist is the package's recipe of that name.
    ``base`` is relative to the file it stands in. What comes later overrides what came before.

    Raises:
        DataError: a base that does not exist, or is its own base.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, _, value = argument.partition("=")
        if argument.startswith("-c"):  # the parser takes -cFILE, too
            flag, value = "-c", argument[2:].removeprefix("=")
        if flag not in ("--config", "-c"):
            expanded.append(argument)
            continue
        path = value or next(rest, "")
        for file in _bases(Path(path)):
            expanded += ["--config", str(file)]
    return expanded


def _packaged(path: Path) -> Path:
    """``recipes/...`` of the package, unless the working directory has a file of that name."""
    if path.is_file() or path.parts[:1] != ("recipes",):
        return path
    packaged = RECIPES.joinpath(*path.parts[1:])
    return packaged if packaged.is_file() else path


def _bases(path: Path) -> list[Path]:
    chain = [_packaged(path)]
    while chain[0].is_file():
        # A file that is no recipe at all is the parser's to refuse.
        try:
            recipe = yaml.safe_load(chain[0].read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            break
        base = recipe.get("base") if isinstance(recipe, dict) else None
        if not base:
            break
        below = chain[0].parent / base
        if not below.is_file():
            raise DataError(f"{chain[0]}: its base {below} does not exist; correct the path")
        if any(below.samefile(file) for file in chain):
            raise DataError(f"{chain[0]}: its base {below} builds on {chain[0]} itself; break the circle")
        chain.insert(0, below)
    return chain
