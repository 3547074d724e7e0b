"""Sphinx: `make docs` writes build/docs/index.html."""

project = "alignax"
author = copyright = "The alignax authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Notebooks run in the tests, not here.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
exclude_patterns = ["generate_*.py"]
html_theme = "sphinx_book_theme"
html_title = "alignax"


def _answers(app, what, name, obj, options, lines):
    """Estimators' ``Value:`` and ``Gradient:`` lines as paragraphs of their own."""
    result, answering = [], False
    for line in lines:
        if line.startswith(("Value: ", "Gradient: ")):
            head, text = line.split(": ", 1)
            result += ["", f"**{head}:** {text}"]
            answering = True
        elif answering and line.startswith(" "):
            result.append(line.strip())
        else:
            result += [""] * answering + [line]
            answering = False
    lines[:] = result


def setup(app):
    app.connect("autodoc-process-docstring", _answers, priority=400)
