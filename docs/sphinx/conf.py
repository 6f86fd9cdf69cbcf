"""Sphinx's settings for the site. Nothing in a page is loaded from elsewhere: no fonts, no scripts, no formulas by script."""

from elbocli import __version__

project = "elbo"
version = release = __version__
html_show_copyright = False
extensions = ["myst_parser"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # links to a heading that isn't there are errors
smartquotes = False  # --option stays as it is typed
highlight_language = "none"  # most blocks are what a terminal shows

html_theme = "furo"
html_title = f"elbo {version}"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_css_files = ["site.css"]
html_static_path = ["static"]
