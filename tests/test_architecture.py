"""Imports between the packages of botnet follow docs/architecture.md."""

import ast
import re
from pathlib import Path

import botnet

PACKAGE = Path(botnet.__file__).parent
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def room(module: str) -> str:
    """The package, or the module of the top level, that a module belongs to."""
    return module.split(".")[1] if "." in module else "botnet"


def imports() -> dict[str, set[str]]:
    """For each room, the others that its files import anywhere, inside of functions and for types too."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        own = room(".".join(parts).removesuffix(".__init__"))
        others = found.setdefault(own, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "botnet":
                whole = node.module == "botnet"
                others |= {name.name if whole else room(node.module or "") for name in node.names}
            elif isinstance(node, ast.Import):
                others |= {room(name.name) for name in node.names if name.name.split(".")[0] == "botnet"}
        others -= {own, "__version__"}
    return found


def test_rooms_import_what_the_architecture_allows() -> None:
    (block,) = re.findall(r"```imports\n(.*?)```", ARCHITECTURE.read_text(), flags=re.DOTALL)
    allowed = {}
    for line in block.splitlines():
        name, _, others = line.partition("->")
        allowed[name.strip()] = set(re.findall(r"\w+", others))
    assert imports() == allowed


def test_no_circle_among_the_rooms() -> None:
    left = imports()
    while free := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}
