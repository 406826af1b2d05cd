"""Sphinx's settings for the site. Read by sphinx-build with build/site/source as the source folder; knows no page by name.

Nothing is fetched: notebooks are shown as they were saved, formulas are drawn at build time, the theme brings its own files.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from tools.site.docstrings import as_rst  # noqa: E402

_settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

project = "Grounded LLMs"
author = "Grounded LLMs contributors"
copyright = "Grounded LLMs contributors; code Apache-2.0, prose and data CC BY 4.0"
release = _settings["project"]["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "tools.site.formulas"]
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Set-up: show the cell"
nb_code_prompt_hide = "Set-up: hide the cell"
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 4
html_math_renderer = "svg"

# Docstrings are plain text with `names` in single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "Grounded LLMs"
html_static_path = [str(Path(__file__).with_name("assets"))]
html_css_files = ["course.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "top_of_page_buttons": [],  # pages are laid out anew, so "edit this page" would lead nowhere
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#14304e", "color-brand-content": "#1f5a8a"},
    "dark_css_variables": {"color-brand-primary": "#9cc4ea", "color-brand-content": "#7db7ec"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _rewrite_docstring(app, what, name, obj, options, lines) -> None:  # type: ignore[no-untyped-def]
    """Hands docstrings to `tools.site.docstrings`."""
    lines[:] = as_rst(lines)


def setup(app) -> None:  # type: ignore[no-untyped-def]
    """Connects what cleans docstrings."""
    app.connect("autodoc-process-docstring", _rewrite_docstring)
