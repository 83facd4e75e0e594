"""Sphinx's settings for the site. Not run by hand: `python tools/build_site.py` lays out the pages,
and book.json with what they may point to, and calls Sphinx with this folder."""
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = Path(os.environ["BOOK_SOURCE"])            # the pages, laid out by build_site.py
sys.path.insert(0, str(HERE))
book = json.loads((SOURCE / "book.json").read_text(encoding="utf8"))

project = html_title = book["title"]
author, copyright, release = book["author"], book["copyright"], book["version"]
language = book.get("language", "en")
word = lambda text: book.get("words", {}).get(text, text)       # of the site, in that language
above = book.get("above", "")                       # from the pages of a translation to the others
extensions = [
    "myst_nb", "sphinx_togglebutton", "sphinx_copybutton", "sphinx_design", "sphinx.ext.mathjax",
    "book",
]
exclude_patterns = ["book.json", "_static", "images"]

# Notebooks are shown as they are stored; what they printed as Markdown is read like the prose.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = word("Show the {type}")
nb_code_prompt_hide = word("Hide the {type}")
myst_enable_extensions = ["dollarmath", "deflist", "strikethrough"]
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "mailto": None, "ftp": None, "english": None}
suppress_warnings = ["myst.header"]                 # a page that starts with ## in printed Markdown

html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": book["git_url"],
    "use_repository_button": True,
    "use_download_button": False,                   # below each title stand links of our own
    "use_source_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],                        # the side bar has a field to search already
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "extra_footer": f"<div>{word('Licensed under {license}.').format(**book)}</div>",
}
html_context = {"default_mode": "auto"}
html_static_path = [str(HERE / "static"), str(SOURCE / "_static")]
html_css_files = ["site.css"]
html_js_files = ["equations.js", "site.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

# Served from the site itself. In CHTML a formula can be shown again where the mouse is.
mathjax_path = f"{above and '../../_static/'}mathjax/tex-chtml-full.js"
myst_update_mathjax = False
mathjax3_config = {
    "chtml": {"matchFontHeight": False, "scale": 1.08},
    "options": {
        "enableMenu": False,
        "ignoreHtmlClass": "document",
        "processHtmlClass": "math",
    },
}
