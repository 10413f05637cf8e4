"""Check the site of `make docs`: links lead somewhere, no file is of a server, every public name is there."""

import importlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGES = ("layers", "models", "detection", "classification", "deploy")
# Attributes by which a browser loads a file; a `link` only of these kinds.
LOADS = {("link", "href"), *((tag, "src") for tag in ("script", "img", "iframe", "source", "video"))}
LOADED_LINKS = {"stylesheet", "icon", "preload"}


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        for name, value in given.items():
            if (tag, name) in LOADS and (tag != "link" or LOADED_LINKS & set(given.get("rel", "").split())):
                self.loaded.add(value)


def problems_of(site: Path) -> list[str]:
    """What is wrong with the pages of a folder, one line each."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    problems = [] if pages else [f"{site}: no pages"]
    for path, page in pages.items():
        name = path.relative_to(site)
        remote = [
            url for url in page.loaded if urlsplit(url).scheme not in ("", "data") or url.startswith("//")
        ]
        problems += [f"{name}: loads {url}" for url in remote]
        for url in sorted((page.links | page.loaded) - set(remote)):
            parts = urlsplit(url)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{name}: no file {url}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                problems.append(f"{name}: no anchor {url}")
    for sheet in site.rglob("*.css"):
        remote_files = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", sheet.read_text())
        problems += [f"{sheet.relative_to(site)}: loads {url}" for url in remote_files]
    return problems


def missing_names(site: Path) -> list[str]:
    """Public names that the reference does not have."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {
        entry for kind in inventory.data if kind.startswith("py:") for entry in inventory.data[kind]
    }
    public = {f"botnet.{name}": importlib.import_module(f"botnet.{name}").__all__ for name in PACKAGES}
    names = [f"{package}.{name}" for package, members in public.items() for name in members]
    return [f"not in the reference: {name}" for name in names if name not in documented]


def main() -> None:
    site = Path(sys.argv[1])
    problems = problems_of(site) + missing_names(site)
    if problems:
        sys.exit("\n".join(problems))
    print(f"{site}: links lead somewhere, nothing is loaded from a server, every public name is documented")


if __name__ == "__main__":
    main()
