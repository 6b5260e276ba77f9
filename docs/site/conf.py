"""Configuration of Sphinx; `build.py` beside it prepares the pages and calls Sphinx."""

from importlib.metadata import version as installed_version

project = "tensormd"
author = "the authors of tensormd"
copyright = "the authors of tensormd, MIT licence"
release = version = installed_version("tensormd")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # build.py executes the tutorials
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
viewcode_follow_imported_members = False

templates_path: list[str] = []
html_theme = "pydata_sphinx_theme"
html_title = f"tensormd {release}"
html_show_sourcelink = False
html_static_path: list[str] = []
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 1,
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
