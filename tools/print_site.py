"""One PDF of the book: each built page printed by Chromium, and the pieces put together.

`python tools/build_site.py --pdf` calls it. Links between chapters, and mentions of equations, lead
to their place in the file; headings become its outline."""
import io
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, Destination, Fit, NameObject, NullObject, NumberObject

import site_pages as pages
from check_site import Browser, no_browser, serve

ELSEWHERE = "https://book.invalid/#"                # a place in another piece, until all are there
PAPER = 690                                         # its width in pixels
# Formulas too wide for the paper are made smaller.
SHRINK = """
() => {
  for (const box of document.querySelectorAll('div.math')) {
    const formula = box.querySelector('mjx-container');
    if (!formula) continue;
    const least = formula.style.minWidth, size = parseFloat(getComputedStyle(formula).fontSize);
    const need = Math.max(least ? parseFloat(least) * size : 0, formula.scrollWidth);
    const fits = 0.98 * size * box.clientWidth / need;
    if (need > box.clientWidth) formula.style.fontSize = fits + 'px';
  }
}
"""


def target(link: str, here: str, known: set[str]) -> str | None:
    "Where a link of page `here` leads in the book; None if to nothing that is printed."
    parts = urlsplit(link)
    if parts.scheme:
        return link
    name = unquote(parts.path).removesuffix(".html") or here
    if name not in known:
        return None
    place = f"{name}--{parts.fragment}" if parts.fragment else name
    return f"#{place}" if name == here else ELSEWHERE + place


def piece(html: str, name: str, known: set[str]) -> BeautifulSoup:
    "What stands on one page, with places and links that hold in the whole book."
    article = BeautifulSoup(html, "html.parser").find("article")
    for node in article.select(".page-links, a.headerlink, .toctree-wrapper"):
        node.decompose()
    for node in article.find_all(id=True):
        node["id"] = f"{name}--{node['id']}"
    for node in article.find_all("a", href=True):
        where = target(node["href"], name, known)
        if where is None:
            node.unwrap()
        else:
            node["href"] = where
    for node in article.find_all("details"):
        node["open"] = ""
    for node in article.find_all("video"):
        for key in ("autoplay", "loop", "controls"):
            node.attrs.pop(key, None)
    return article


def wanted(pieces: dict[str, BeautifulSoup]) -> set[str]:
    "The places that any piece links to."
    links = (a["href"] for body in pieces.values() for a in body.find_all("a", href=True))
    return {link.partition("#")[2] for link in links if link.startswith(("#", ELSEWHERE))}


def sheet(body: str, ids: list[str], title: str, settings: str) -> str:
    """One piece as a page to print. A PDF knows a place only if a link of its own leads there, so
    there is one to each that others want, too small to see."""
    places = "".join(f'<a href="#{i}">.</a>' for i in ids)
    return f"""<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{title}</title>
<link rel="stylesheet" href="_static/pygments.css"><link rel="stylesheet" href="_static/print.css">
{settings}<script defer src="_static/mathjax/tex-chtml-full.js"></script>
<script defer src="_static/site.js"></script></head><body>
{body}<div class="places">{places}</div></body></html>"""


def order(book: pages.Book) -> list[tuple[str, str, str]]:
    "The pieces of the PDF: (file name, title, name of the piece it belongs to)."
    found = [("index", "Preface", "")]
    for part, chapters in pages.parts(book).items():
        if part:
            found.append((pages.part_name(part), part, ""))
        found += [(c.stem, c.name, pages.part_name(part) if part else "") for c in chapters]
    return [*found, ("symbols", "Symbols", "")]


def front(book: pages.Book, listed: list[tuple[str, str, str]]) -> str:
    "The cover and the contents."
    s = book.settings
    entries = "".join(
        f'<li class="{"inner" if above else ""}"><a href="{ELSEWHERE}{name}">{title}</a></li>'
        for name, title, above in listed
    )
    return f"""<section class="cover"><h1>{s['title']}</h1><p>{s['description']}</p>
<p>{s['author']}</p><p>Version {s['version']}. {s['copyright']}.</p></section>
<section class="contents"><h1>Contents</h1><ul>{entries}</ul></section>"""


def printed(browser: Browser, site: Path, html: str, title: str, timeout: int) -> PdfReader:
    "A piece as PDF."
    path = site / "print.html"
    path.write_text(html, encoding="utf8")
    try:
        page = browser.open(path.name, PAPER, timeout=timeout)
        page.emulate_media(media="print")
        page.evaluate(SHRINK)
        data = page.pdf(
            prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
            display_header_footer=True, header_template="<span></span>",
            footer_template='<div style="width: 100%; text-align: center; font-size: 8px">'
            f'{title} · <span class="pageNumber"></span></div>',
        )
        page.close()
    finally:
        path.unlink()
    return PdfReader(io.BytesIO(data))


class Binder:
    "Puts pieces together; `places` is where each place of the book is: (page, left, top)."

    def __init__(self):
        self.writer, self.places, self.items = PdfWriter(), {}, {}

    def add(self, piece: PdfReader, name: str, title: str, above: str = "") -> None:
        "Append a piece, and its headings to the outline below `above`."
        first = len(self.writer.pages)
        for key, there in piece.named_destinations.items():
            page = first + piece.get_destination_page_number(there)
            self.places[key.lstrip("/")] = (page, there.left or 0, there.top or 842)
        self.places[name] = (first, 0, 842)
        self.writer.append(piece, import_outline=False)
        item = self.writer.add_outline_item(title, first, self.items.get(above))
        self.items[name] = item
        self.headings(piece, piece.outline, first, item)

    def headings(self, piece: PdfReader, found: list, first: int, above, depth: int = 0) -> None:
        "Headings of a piece; its only first one is the piece itself."
        last = above
        for one in found:
            if isinstance(one, list):
                self.headings(piece, one, first, last, depth + 1)
            elif depth and isinstance(one, Destination):
                page = first + piece.get_destination_page_number(one)
                fit = Fit.xyz(one.left or 0, one.top or 842, None)
                last = self.writer.add_outline_item(one.title, page, above, fit=fit)

    def link(self) -> list[str]:
        "Give every link its place; returns the places that are nowhere."
        lost = []
        for page in self.writer.pages:
            for annotation in page.get("/Annots") or []:
                one = annotation.get_object()
                uri = str(one.get("/A", {}).get("/URI", ""))
                inner = one.get("/Dest")
                if uri.startswith(ELSEWHERE):
                    name = unquote(uri.removeprefix(ELSEWHERE))
                elif isinstance(inner, str):
                    name = inner.lstrip("/")
                else:
                    continue
                if name in self.places:
                    number, left, top = self.places[name]
                    one.pop("/A", None)
                    one[NameObject("/Dest")] = ArrayObject([
                        self.writer.pages[number].indirect_reference, NameObject("/XYZ"),
                        NumberObject(left), NumberObject(top), NullObject(),
                    ])
                else:
                    lost.append(name)
        return lost


def print_book(site: Path, pdf: Path, book: pages.Book, names: list[str] | None = None,
               timeout: int = 1800) -> None:
    "Write the PDF; with `names` only of these pages."
    if missing := no_browser():
        sys.exit(f"The PDF needs a browser. {missing}")
    listed = [one for one in order(book) if not names or one[0] in names]
    known = {name for name, _, _ in listed}
    read = lambda name: (site / f"{name}.html").read_text(encoding="utf8")
    pieces = {name: piece(read(name), name, known) for name in known}
    settings = re.search(r"<script>window\.MathJax = .*?</script>", read("index"), re.S)[0]
    ends, binder = wanted(pieces), Binder()
    server, address = serve(site)
    browser = Browser(address)
    try:
        title = book.settings["title"]
        html = sheet(front(book, listed), [], title, settings)
        binder.add(printed(browser, site, html, title, timeout), "contents", "Contents")
        for name, title, above in listed:
            ids = [n["id"] for n in pieces[name].find_all(id=True) if n["id"] in ends]
            html = sheet(pieces[name].decode_contents(), ids, title, settings)
            binder.add(printed(browser, site, html, title, timeout), name, title, above)
        faults = browser.faults + [f"a link to {name} leads nowhere" for name in binder.link()]
        if faults:
            sys.exit("\n".join(faults))
    finally:
        browser.close()
        server.shutdown()
    binder.writer.compress_identical_objects()
    binder.writer.add_metadata({"/Title": book.settings["title"]})
    binder.writer.write(pdf)
