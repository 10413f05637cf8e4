"""Settings of the documentation site (`make docs`)."""

import re

from pygments.lexers.special import TextLexer

import botnet

project = "BoTNet"
copyright = "the BoTNet authors, Apache-2.0"
version = release = botnet.__version__
extensions = [
    "myst_nb",  # Markdown, and notebooks with the output that they hold
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 4  # links to headings work as on GitHub
nb_execution_mode = "off"  # tests/test_tutorials.py runs the notebooks

html_theme = "furo"
html_title = f"BoTNet {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
# No icon of a repository, and nothing from another server: the pages are read offline as well.
html_theme_options = {"footer_icons": []}

default_role = "literal"  # docstrings write `name`
add_module_names = False
maximum_signature_line_length = 80
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False


def _navigation(app, docname: str, source: list[str]) -> None:
    """Group the side bar like the index, whose tables are the only list of the pages."""
    if docname != app.config.root_doc:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        rows = re.findall(r"^\| \[(.*?)\]\((.+?)\.(?:md|ipynb)\)", section, flags=re.MULTILINE)
        pages = [f"{title} <{page}>" for title, page in rows]
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
        source[0] += "\n" + "\n".join(lines) + "\n"


def setup(app) -> None:
    """Hook into Sphinx."""
    app.add_lexer("imports", TextLexer)  # of architecture.md, which a test reads
    app.connect("source-read", _navigation)
