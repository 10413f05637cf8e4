"""jsonargparse's errors about options in one line: what was given, what is allowed, the nearest names."""

import inspect
import re
from collections.abc import Iterable, Sequence
from importlib import import_module

from botnet.errors import nearest

TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "collections.abc.Iterable": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
RUN_OPTIONS = (
    "config",
    "seed_everything",
    "trainer",
    "model",
    "data",
    "row",
    "global_batch",
    "batch_rule",
    "save_minutes",
    "patience",
    "ckpt_path",
)
MAX_LENGTH = 300  # characters of a message of another form


def explain(message: str) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: of its ``ArgumentError``.
    """
    if message.startswith("the following arguments are required: "):  # the model's, without a recipe
        return "no recipe: give one by --config, such as recipes/quickstart.yaml"
    if unknown := re.match(r"unrecognized arguments: --([\w.]+)", message):
        return _no_option(unknown[1].split("."), RUN_OPTIONS)
    keys = re.findall(r'Parser key "([^"]+)":', message)
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        classes = re.findall(r"class_path '([\w.]+)'", message)
        return _no_option([*keys, unknown[1]], _parameters(classes[-1]) if classes else ())
    if unknown := re.search(r"^Subcommand '\w+' does not accept option '([^']+)'", message):
        return _no_option(unknown[1].split("."), _parameters("lightning.pytorch.Trainer"))
    option = "--" + ".".join(keys)
    given = re.search(r"Got value: (.*)", message) or re.search(r"Given value: (.*)", message)
    allowed = _allowed(message)
    if given and allowed:
        value = re.sub(r"^NestedArg\(.*val='(.*)'\)$", r"\1", given[1])
        if allowed == ["null"]:  # jsonargparse names no type that it would take: it wants a class
            return f"{option}: {_not_a_class(value)}"
        choices = [choice for choice in allowed if choice not in TYPES.values()]
        return f"{option}: {value!r} is not allowed; give {' or '.join(allowed)}{nearest(value, choices)}"
    line = re.sub(r'^Parser key "([^"]+)": ', r"--\1: ", " ".join(message.split()))
    return line if len(line) <= MAX_LENGTH else line[:MAX_LENGTH] + " ..."


def _no_option(keys: Sequence[str], known: Iterable[str]) -> str:
    """The message about an option of a class, or of the command, that does not exist."""
    hint = nearest(keys[0 if known is RUN_OPTIONS else -1], known)
    return f"--{'.'.join(keys)}: no such option{hint} (botnet fit --help, --data.help, --model.help list all)"


def _not_a_class(value: str) -> str:
    """Why a value is not taken as a class: a wrong path, or a module that fails on import."""
    class_path = re.sub(r"^\{'class_path': '([\w.]+)'.*", r"\1", value)
    module, _, name = class_path.rpartition(".")
    try:
        getattr(import_module(module), name)
    except ImportError as error:
        # Unless the path itself is wrong: then the module that is missing is a part of it.
        if not f"{module}.".startswith(f"{error.name}."):
            return f"{class_path} cannot be imported: {error}"
    except (AttributeError, ValueError):
        pass
    return f"{class_path!r} is not a class that can be imported; give its path, package.Class"


def _parameters(class_path: str) -> Iterable[str]:
    """Names of a class's arguments; none if it cannot be found."""
    module, _, name = class_path.rpartition(".")
    try:
        return inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return ()


def _allowed(message: str) -> list[str]:
    """What a message says it expected, innermost option only, each once."""
    inner = message[message.rfind("Parser key") :].partition("Given value")[0]
    found: list[str] = []
    for kind, choices in re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", inner):
        found += [TYPES.get(kind, kind)] if kind else [choice.strip(" '") for choice in choices.split(",")]
        if "Got value" in inner and kind:
            break  # what follows belongs to the options around it
    return list(dict.fromkeys(found))
