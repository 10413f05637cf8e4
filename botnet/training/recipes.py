"""Recipes and the base recipes they build on."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml

from botnet.errors import ConfigError

RECIPES = Path(str(files("botnet"))) / "recipes"


def with_bases(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the ``base`` of every recipe, and its base in turn, inserted before it.

    What comes later overrides what came before. A file ``recipes/...`` that does not exist is the package's
    recipe of that name.

    Args:
        arguments: of the command line; the ``base`` in a recipe is relative to its file.

    Raises:
        ConfigError: a base does not exist, or recipes build on each other.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, _, value = argument.partition("=")
        if argument.startswith("-c"):  # the parser accepts -cFILE, too
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
    """A recipe after all those that it builds on."""
    chain = [_packaged(path)]
    while chain[0].is_file():
        # The parser refuses a file that is no recipe at all.
        try:
            recipe = yaml.safe_load(chain[0].read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            break
        base = recipe.get("base") if isinstance(recipe, dict) else None
        if not base:
            break
        file = chain[0].parent / base
        if not file.is_file():
            raise ConfigError(f"{chain[0]}: its base {file} does not exist; correct the path")
        if any(file.samefile(other) for other in chain):
            raise ConfigError(f"{chain[0]}: its base {file} builds on {chain[0]} itself; break the circle")
        chain.insert(0, file)
    return chain
