"""The documentation site: the Markdown files of this repository as they are, and a reference from docstrings.

Built from the root of the repository, strictly, so that a broken link or a page that nothing leads to is an error::

    sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/site

Pages keep their places, so a link between two files works on the site as it does in the repository.
"""

from __future__ import annotations

from sphinx.application import Sphinx

import overture

project = "Overture"
version = release = overture.__version__
copyright = "the authors of Overture"
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [".*", "build", "dist", "runs", "src", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Overture"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "front.html"}
templates_path = ["templates"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Leave out what Python writes on fields of named tuples by itself."""

    def quiet(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
        if lines and lines[0].startswith("Alias for field number"):
            lines.clear()

    app.connect("autodoc-process-docstring", quiet)
