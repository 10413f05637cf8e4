"""The check of the documentation's pages finds what is wrong with them (`make docs` runs it)."""

from pathlib import Path

from scripts.check_site import problems_of


def pages(folder: Path, body: str, head: str = "") -> list[str]:
    """The problems of two pages, of which the first has this body and this head."""
    (folder / "other.html").write_text('<h1 id="there">Other</h1>')
    (folder / "page.html").write_text(f'<head>{head}</head><p id="here">{body}</p>')
    return problems_of(folder)


def test_links_that_lead_somewhere(tmp_path):
    body = '<a href="other.html#there">a</a><a href="#here">b</a><a href="https://example.com/x#y">c</a>'
    assert pages(tmp_path, body, '<link rel="canonical" href="https://example.com">') == []


def test_a_link_to_a_missing_file_or_anchor(tmp_path):
    assert pages(tmp_path, '<a href="gone.html">a</a>') == ["page.html: no file gone.html"]
    assert pages(tmp_path, '<a href="other.html#gone">a</a>') == ["page.html: no anchor other.html#gone"]
    assert pages(tmp_path, '<a href="#gone">a</a><img src="gone.png">') == [
        "page.html: no anchor #gone",
        "page.html: no file gone.png",
    ]


def test_what_would_be_loaded_from_a_server(tmp_path):
    script = '<script src="https://cdn.example.com/a.js"></script>'
    assert pages(tmp_path, "", script) == ["page.html: loads https://cdn.example.com/a.js"]
    sheet = '<link rel="stylesheet" href="//fonts.example.com/b.css">'
    assert pages(tmp_path, "", sheet) == ["page.html: loads //fonts.example.com/b.css"]
    (tmp_path / "own.css").write_text("@font-face { src: url(https://fonts.example.com/c.woff2) }")
    assert pages(tmp_path, "") == ["own.css: loads https://fonts.example.com/c.woff2"]


def test_an_empty_folder_is_no_site(tmp_path):
    assert problems_of(tmp_path) == [f"{tmp_path}: no pages"]
