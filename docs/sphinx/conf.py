"""Sphinx's settings for the site. Pages load no fonts and no scripts from elsewhere; formulas are MathML."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from elbocli import __version__

project = "elbo"
version = release = __version__
html_show_copyright = False
extensions = ["myst_parser"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_allow_space = False  # as on GitHub
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4  # links to a heading that isn't there are errors
smartquotes = False  # --option stays as it is typed
highlight_language = "none"  # most blocks are what a terminal shows

html_theme = "furo"
html_title = f"elbo {version}"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_css_files = ["site.css"]
html_static_path = ["static"]
html_search_scorer = str(Path(__file__).parent / "scorer.js")

SPACE = '<mspace width="0.17em"/>'
AMENDED = (
    # Browsers draw no space around "log" in "2 log p".
    (r"(</m(?:i|n|frac|sup)>)(?=\s*<mi[^>]*>\w+</mi>\s*<mo>&ApplyFunction;)", rf"\1{SPACE}"),
    (r"<mo>&ApplyFunction;</mo>(?!\s*(?:<mrow>\s*)?<mo[^>]*>[([])", SPACE),
    (r'<mo stretchy="false">/<', '<mo stretchy="false" lspace="0" rspace="0">/<'),
    (r"<mo>(max|min)<", r'<mo rspace="0">\1<'),
    (r">‖</mo>", ' stretchy="false">‖</mo>'),  # else only the left bar of a norm is stretched
)
"""Pattern and replacement in what docutils writes."""


def write_mathml(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML. Raises MathError, which ends the build, for LaTeX that docutils does not know."""
    mathml = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    for pattern, amended in AMENDED:
        mathml = re.sub(pattern, amended, mathml)
    writer.body.append(mathml)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Use MathML for formulas; Sphinx's own way is a script from elsewhere."""
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
