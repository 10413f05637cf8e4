"""The README and the documentation: examples run, files and links exist."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from botnet.cli import main
from botnet.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def without_code(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_python_examples_run():
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(code, names)
    assert names["logits"].shape == (2, 10)
    assert set(names["losses"]) == {"rpn_score", "rpn_box", "class", "box", "mask"}
    assert "masks" in names["detections"][0]
    assert type(names["net"].layer4[0].conv2).__name__ == "MHSA2d"


def documented(page: Path) -> tuple[list[list[str]], set[str]]:
    """The complete ``botnet fit`` commands of a page, and all options of data and model that it names."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = "\n".join(block for language, block in fenced if not language)
    lines = [line for line in blocks.replace("\\\n", " ").splitlines() if line.startswith("botnet fit")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    fits = [command for command in commands if "..." not in command]
    return fits, set(re.findall(r"--((?:data|model)\.[\w.]*\w)", text))


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of data and model that a recipe of either task has, in the short form of the command."""

    def names(value: object, prefix: str) -> Iterator[str]:
        for key, inner in value.items() if isinstance(value, dict) else ():
            # A class within is written without the word init_args.
            name = prefix if key == "init_args" else f"{prefix}.{key}"
            yield name
            yield from names(inner, name)

    known: set[str] = set()
    for recipe in ("quickstart.yaml", "quickstart_classify.yaml"):
        config = printed_config("fit", "--config", f"recipes/{recipe}")
        known |= {name for part in ("data", "model") for name in names(config[part], part)}
    return known


def printed_config(*command: str) -> dict:
    """The configuration that a command would run with."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit, match="0"):
        main([*command, "--print_config"])
    return yaml.safe_load(printed.getvalue())


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_option_and_training_command_of_a_page_is_taken(page, options):
    commands, named = documented(page)
    assert named - options - {"data.help", "model.help"} == set()
    for command in commands:
        assert printed_config(*command)["model"]


def test_the_readme_is_short_and_begins_with_a_picture_and_commands():
    lines = README.splitlines()
    assert len(lines) <= 120
    head = "\n".join(lines[:30])
    assert "![" in head
    assert "make quickstart" in head


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_file_that_a_page_names_exists(page):
    named = re.findall(
        r"(?:^|[\s`(])((?:recipes|botnet|tests|docs|benchmarks|scripts)/[\w/.-]*\w)",
        page.read_text(),
        flags=re.MULTILINE,
    )
    homes = (ROOT, RECIPES.parent)  # the package has the recipes
    assert [name for name in named if not any((home / name).exists() for home in homes)] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_internal_link_of_a_page_works(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_index_lists_every_page():
    docs = ROOT / "docs"
    listed = re.findall(
        r"^\| \[.*?\]\(([\w/-]+\.(?:md|ipynb))\)", (docs / "index.md").read_text(), flags=re.MULTILINE
    )
    pages = {page.relative_to(docs).as_posix() for kind in ("*.md", "*.ipynb") for page in docs.rglob(kind)}
    assert sorted(listed) == sorted(pages - {"index.md"})


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 300_000] == []


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), flags=re.MULTILINE)
    }
    assert named <= targets
    assert len(named) > 10


def test_the_names_of_the_architecture_page_exist():
    """Classes and functions that the journeys name are words of the package's code."""
    journeys = (
        (ROOT / "docs" / "architecture.md").read_text().partition("## The journey of a training image")[2]
    )
    code = "".join(path.read_text() for path in (ROOT / "botnet").rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    named = re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", journeys.partition("## Couplings")[0])
    names = [part for name in named if not name.endswith(".json") for part in name.split(".")]
    assert [name for name in names if name not in words | {"yaml"}] == []
    assert len(names) > 40
