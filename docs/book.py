"""What the book adds to Sphinx: equations with a place, mentions of them as links, links from code
to the library and back, a text for each picture."""
import html
import re

from docutils import nodes
from sphinx.search.en import SearchEnglish

NUMBER = r"(?:\d+|[A-Z])\.\d+[a-z]?"
TAG = re.compile(rf"\\tag\{{({NUMBER})\}}")
MENTION = re.compile(
    rf"\((?P<equation>{NUMBER})\)|"
    r"(?:\b(?:[Cc]hapters?|[Aa]ppendi(?:x|ces))\s+|第 (?=\d+ 章)|附录 )"
    r"(?P<chapter>\d+|[A-Z])\b(?: 章)?"
)
KEPT = (nodes.literal, nodes.literal_block, nodes.reference, nodes.math, nodes.math_block,
        nodes.raw, nodes.title)


def place(number: str) -> str:
    "The anchor of an equation."
    return "eq-" + number.replace(".", "-")


def anchor(app, doctree):
    """Give equations, code cells and pictures what they are found or told by, and links of a
    translation to English pages the way there."""
    for link in doctree.findall(nodes.reference):
        if link.get("refuri", "").startswith("english:"):
            link["refuri"] = app.config.book["above"] + link["refuri"].removeprefix("english:")
    for node in doctree.findall(nodes.math_block):
        if found := TAG.search(node.astext()):
            if app.config.book["equations"][found[1]] == app.env.docname:
                node["book_place"] = place(found[1])
    for cell in doctree.findall(lambda n: isinstance(n, nodes.container) and
                                n.get("nb_element") == "cell_code"):
        about = cell.get("cell_metadata", {}).get("book", {})
        if about.get("cell"):
            cell["ids"].append(f"cell-{about['cell']}")
        for picture in cell.findall(nodes.image):
            picture["alt"] = picture.get("alt") or about.get("alt", "")


def target(app, docname: str, path: str) -> str:
    "A link from a page to a place of the site; what is not translated is in the folder above."
    name, _, fragment = path.partition("#")
    name = name.removesuffix(".html")
    above = app.config.book.get("above")
    if above and name not in app.env.found_docs:
        start = f"{above}{name}.html"
    else:
        start = "" if name == docname else app.builder.get_relative_uri(docname, name)
    return f"{start}#{fragment}" if fragment else start


def mention(app, docname: str, found: re.Match) -> str | None:
    "Where a mention leads: an equation, a chapter, or nowhere."
    book = app.config.book
    if number := found["equation"]:
        page = book["equations"].get(number)
        return page and target(app, docname, f"{page}#{place(number)}")
    page = book["chapters"].get(found["chapter"].lstrip("0") or "0")
    return target(app, docname, page) if page and page != docname else None


def within(node, kinds) -> bool:
    "Whether a node stands in one of some kinds."
    while node.parent is not None and not isinstance(node.parent, kinds):
        node = node.parent
    return node.parent is not None


def asked(node) -> bool:
    "Whether a node stands in a <summary>, which is a button: no links in it."
    while node.parent is not None and not isinstance(node, nodes.paragraph):
        node = node.parent
    before = node.previous_sibling() if node.parent is not None else None
    return isinstance(before, nodes.raw) and before.astext().rstrip().endswith("<summary>")


def link(app, doctree, docname):
    "Mentions of equations and chapters in prose, and names of the library in it, become links."
    for text in list(doctree.findall(nodes.Text)):
        if not (within(text, KEPT) or asked(text)):
            source, made, end = text.astext(), [], 0
            for found in MENTION.finditer(source):
                if uri := mention(app, docname, found):
                    kind = {"classes": ["eqref"]} if found["equation"] else {}
                    made += [
                        nodes.Text(source[end:found.start()]),
                        nodes.reference("", found[0], refuri=uri, internal=True, **kind),
                    ]
                    end = found.end()
            if made:
                text.parent.replace(text, [*made, nodes.Text(source[end:])])
    for literal in list(doctree.findall(nodes.literal)):
        path = library(app, docname, literal.astext().removesuffix("()"))
        if path and not (within(literal, (nodes.reference, nodes.title)) or asked(literal)):
            reference = nodes.reference(
                "", "", literal.deepcopy(), internal=True, classes=["name"], refuri=path
            )
            literal.parent.replace(literal, reference)


def library(app, docname: str, name: str, defined: bool = False) -> str | None:
    """Where a name of the library is described. A plain word is a word, or a name of the moment,
    more often than one of the library: it counts where its own chapter defines it."""
    path, home = app.config.book["names"].get(name, (None, None))
    if path is None or docname.startswith("api/"):
        return None
    if home != docname if defined else re.fullmatch(r"[a-z]+", name):
        return None
    return target(app, docname, path)


def visit_equation(self, node):
    """A display equation in a box of its own, which links lead to. Written as it stands: Sphinx
    would put one of several lines into an environment that allows no number."""
    text = self.encode(node.astext().strip())
    formula = f'<div class="math notranslate nohighlight">\\[{text}\\]</div>'
    where = node.get("book_place")
    self.body.append(f'<div class="eqtag" id="{where}">{formula}</div>' if where else formula)
    raise nodes.SkipNode


def link_code(app, docname: str, text: str) -> str:
    "Highlighted code with links at cited equations and at names of the library."
    def cite(span):
        def one(found):
            uri, kind = mention(app, docname, found), ' class="eqref"' * bool(found["equation"])
            return f'<a{kind} href="{uri}">{found[0]}</a>' if uri else found[0]
        return span[1] + MENTION.sub(one, span[2]) + span[3]
    def name(span):
        defined = 'class="n"' not in span[1]
        uri = library(app, docname, html.unescape(span[2]), defined)
        called = defined or span[4] or span[2][0].isupper()
        if not (uri and called):
            return span[0]
        return f'{span[1]}<a class="name" href="{uri}">{span[2]}</a>{span[3]}{span[4]}'
    text = re.sub(r'(<span class="(?:c1|sd|s1|s2)">)(.*?)(</span>)', cite, text, flags=re.S)
    names = r'(<span class="(?:n|nf|nc)">)(\w+)(</span>)(<span class="p">\(|)'
    return re.sub(names, name, text)


def with_links(visit):
    "The writer of code blocks, with links."
    def write(self, node):
        try:
            visit(self, node)
        finally:
            if self.body and "<pre>" in self.body[-1]:
                app = self.builder.app
                self.body[-1] = link_code(app, self.builder.current_docname, self.body[-1])
    return write


def prepare(app):
    "Put our writer of code blocks in the place of Sphinx's."
    from sphinx.writers.html5 import HTML5Translator
    base = app.registry.translators.get(app.builder.name) or HTML5Translator
    own = type("BookTranslator", (base,), {})
    own.visit_literal_block = with_links(base.visit_literal_block)
    app.registry.translators[app.builder.name] = own


class Chinese(SearchEnglish):
    """Words for the search, of pages and of questions: Latin ones as in English; Chinese, which has
    no blanks between words, as all pairs of neighbours, and as single characters."""
    lang, language_name = "zh", "English"              # the latter names the script of the stemmer
    js_splitter_code = r"""
function splitQuery(query) {
  const word = /[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{Letter}\p{Number}_])+/gu;
  const pairs = (run) => [...run.slice(1)].map((_, i) => run.slice(i, i + 2));
  const parts = (run) => /^[\u3400-\u9fff]{2}/.test(run) ? pairs(run) : [run];
  return (query.match(word) || []).flatMap(parts);
}
"""

    def split(self, input: str) -> list[str]:
        runs = re.findall(r"[\u3400-\u9fff]+", input)
        pairs = [run[i:i + 2] for run in runs for i in range(len(run) - 1)]
        return [*re.findall(r"[^\W\u3400-\u9fff]+", input), *"".join(runs), *pairs]


def setup(app):
    "Called by Sphinx."
    app.add_search_language(Chinese)
    app.add_config_value("book", {}, "env")
    app.set_html_assets_policy("always")        # formulas are shown on pages without one, too
    app.connect("builder-inited", prepare, priority=900)
    app.connect("doctree-read", anchor)
    app.connect("doctree-resolved", link)
    app.add_node(nodes.math_block, override=True, html=(visit_equation, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
