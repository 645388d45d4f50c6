"""The documentation: `sphinx-build -W -n docs site`.

Pages are MyST Markdown. Those that begin with a kernel in their front matter are notebooks,
run while the site is built; the examples of the others are run by `tests/test_docs.py`.
Nothing that a page needs comes from a network.
"""

import sys
from pathlib import Path

from sphinxcontrib import katex

import refseq2seq

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "refseq2seq"
author = "the authors of refseq2seq"
copyright = "the authors of refseq2seq"
version = release = refseq2seq.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.katex",
    "charts",
    "downloads",
    "pictures",
    "tables",
    "written",
    "failures",
]
exclude_patterns = ["_build", "_static/katex/README.md", "g2p", "examples"]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
default_role = "any"  # `name` in a docstring is a link to it
nitpick_ignore = [
    ("any", "torch.multinomial"),
    ("any", "torch.multinomial(probs, 1)"),
    ("any", "topk"),
    ("py:class", "collections.abc.Callable"),
]

# Markdown and notebooks
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would come from a network

# Maths, set while the site is built: no script, and fonts of our own
html_math_renderer = "katex"
katex_prerender = True
katex_css_path = "katex/katex.min.css"
# Of its two ways to start the renderer, the one that waits until somebody listens
katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0

# Docstrings
autodoc_typehints = "none"  # the docstrings say types and shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

# Looks
html_theme = "pydata_sphinx_theme"
html_title = "refseq2seq"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "a11y-high-contrast-light"
html_theme_options = {
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "secondary_sidebar_items": ["page-toc", "download"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}
# Pages without a section of their own have nothing for a sidebar.
html_sidebars = {page: [] for page in ("index", "start", "conventions", "model-card")}
html_context = {"default_mode": "auto"}
