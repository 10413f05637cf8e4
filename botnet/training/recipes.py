"""Recipes and the base recipes they build on."""

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from botnet.errors import ConfigError

MOST_VALUES = 100_000  # of a recipe
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
    parts = _with_recipes(arguments)
    return [word for part in parts for word in ([part] if isinstance(part, str) else _options(part))]


def _options(recipes: Sequence[Path]) -> list[str]:
    return [word for file in recipes for word in ("--config", str(file))]


def name_recipe(message: str, arguments: Sequence[str]) -> str:
    """A message about an option, headed by the recipe that sets the option where the command line does not.

    Args:
        message: begins with the option, ``--data.canvas: ``; another is returned as it is.
        arguments: of the command line.
    """
    option = re.match(r"--([\w.]+): ", message)
    return message if option is None else ["", *setters(option[1], arguments)][-1] + message


def setters(option: str, arguments: Sequence[str]) -> list[str]:
    """What sets an option, as the beginning of a message; the last one counts.

    Args:
        option: without dashes, such as ``data.canvas``.
        arguments: of the command line.

    Returns:
        ``"RECIPE: "`` for each recipe, ``""`` for the command line; none where the option has its default.
    """
    found = []
    for part in _with_recipes(arguments):
        if isinstance(part, str):
            if part.partition("=")[0].replace(".init_args", "") == f"--{option}":
                found.append("")
            continue
        for file in part:
            if _sets(file, option.split(".")):
                found.append(f"{file}: " if file is part[-1] else f"{file}, a base of {part[-1]}: ")
    return found


def _sets(file: Path, keys: Sequence[str]) -> bool:
    """Whether a recipe has a value under these keys; ``init_args`` may be left out of them."""
    node: Any = _read(file)
    for key in keys:
        if isinstance(node, dict) and key not in node:
            node = node.get("init_args")
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _with_recipes(arguments: Sequence[str]) -> Iterator[str | list[Path]]:
    """The arguments, each recipe as the list of its bases and itself."""
    rest = iter(arguments)
    for argument in rest:
        flag, _, value = argument.partition("=")
        if argument.startswith("-c"):  # the parser accepts -cFILE, too
            flag, value = "-c", argument[2:].removeprefix("=")
        if flag not in ("--config", "-c"):
            yield argument
            continue
        yield _bases(Path(value or next(rest, "")))


def _read(file: Path) -> Any:
    """A recipe's content; None for a file that is none, which the parser refuses.

    Raises:
        ConfigError: the parser would not come to an end with it, or with a traceback.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        if _count(content, {}) <= MOST_VALUES:
            return content
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}, line {line}: is not UTF-8; save it in that encoding") from error
    except (OSError, yaml.YAMLError, ValueError):
        return None
    except RecursionError as error:
        raise ConfigError(f"{file}: is nested too deeply, or refers to itself; rewrite it") from error
    raise ConfigError(f"{file}: stands for more than {MOST_VALUES:,} values by its references; write it out")


def _count(content: Any, known: dict[int, int]) -> int:
    """The values of a document in which each reference is written out."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(content)]


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
        recipe = _read(chain[0])
        base = recipe.get("base") if isinstance(recipe, dict) else None
        if not base:
            break
        if not isinstance(base, str):
            raise ConfigError(f"{chain[0]}: its base is {base!r}, not the path of a recipe; correct it")
        file = chain[0].parent / base
        if not file.is_file():
            raise ConfigError(f"{chain[0]}: its base {file} does not exist; correct the path")
        if any(file.samefile(other) for other in chain):
            raise ConfigError(f"{chain[0]}: its base {file} is based on {chain[0]} itself; remove the cycle")
        chain.insert(0, file)
    return chain
