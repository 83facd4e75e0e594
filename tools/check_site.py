"""Open the built site in Chromium, without a network, and say what is wrong with it.

    python tools/check_site.py                      # _site/html, all pages
    python tools/check_site.py --pages 10_retention index
    python tools/check_site.py --no-browser         # links only

Links: each leads to a page, a file and a place that are there; each equation has its place.
Pages, at 1400 pixels in light and at 400 in dark colours: no message on the console, nothing
missing and nothing asked of another host, no wider than the window, a text for every picture, no
serious fault for axe-core; where an equation is mentioned, the formula appears; in each language a
search finds something; Catch and its dream are played with real keys and are those of the library.
Prints one line for each fault; the exit code is 1 if there is one."""
import argparse
import functools
import http.server
import importlib.util
import json
import re
import shutil
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from check_play import PLAY, check_play

ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / "docs" / "node_modules" / "axe-core" / "axe.min.js"
# by the language of a page on which to search
QUESTIONS = {"en": "codebook", "zh-CN": "世界模型"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


class Page(HTMLParser):
    "The links and the places of one page."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.bare = [], set(), 0
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [(k, attrs[k]) for k in ("href", "src", "poster") if attrs.get(k)]
        self.bare += tag == "img" and not attrs.get("alt")


def page_names(site: Path) -> list[str]:
    "All pages, translated ones too; what a theme keeps in _static is none."
    found = sorted(p.relative_to(site) for p in site.rglob("*.html"))
    return [p.as_posix() for p in found if "_static" not in p.parts]


def check_links(site: Path) -> list[str]:
    "Faults in what the pages point to."
    pages = {name: Page(site / name) for name in page_names(site)}
    faults = []
    for name, page in pages.items():
        if page.bare:
            faults.append(f"{name}: {page.bare} pictures without a text")
        for kind, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if kind != "href":
                    faults += [f"{name}: loads {link[:60]}"] * (parts.scheme in ("http", "https"))
                continue
            place = Path(name).parent / unquote(parts.path) if parts.path else Path(name)
            path = (site / place).resolve()
            other = path.relative_to(site).as_posix() if path.is_relative_to(site) else ""
            if not path.exists():
                faults.append(f"{name}: {link} is not there")
            elif parts.fragment and other in pages:
                place = unquote(parts.fragment).removeprefix("/")       # slides say #/place
                if place not in pages[other].ids | {"", "top"}:
                    faults.append(f"{name}: {link}: no such place")
    text = (site / "_static" / "equations.js").read_text(encoding="utf8")
    numbers = json.loads(text.partition("=")[2].rstrip("; \n"))
    places = {i for page in pages.values() for i in page.ids}
    lost = [n for n in numbers if "eq-" + n.replace(".", "-") not in places]
    return faults + [f"equation ({n}) has no place" for n in lost]


def serve(site: Path):
    "A server of a folder on a free port; returns it and its address."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def find_chromium() -> str | None:
    "Chromium or Chrome of this machine, if it has one."
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def no_browser() -> str:
    "Why pages cannot be opened here; the empty string if they can."
    if not importlib.util.find_spec("playwright"):
        return 'playwright is missing: pip install -e ".[docs]"'
    if not find_chromium():
        return "Chromium is missing: apt install chromium"
    return ""


class Browser:
    "Chromium that reaches nothing but one site and notes what goes wrong."

    def __init__(self, address: str):
        from playwright.sync_api import sync_playwright
        self.address, self.faults = address, []
        self.own = sync_playwright().start()
        self.chromium = self.own.chromium.launch(executable_path=find_chromium(), args=FLAGS)

    def close(self):
        self.chromium.close()
        self.own.stop()

    def open(self, name: str, width: int, dark: bool = False, timeout: int = 180, before: str = ""):
        "A page, drawn to the end; `before` is a script that runs first."
        page = self.chromium.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        page.set_default_timeout(1000 * timeout)
        note = lambda text: self.faults.append(f"{name} ({width}): {text}")
        page.on("console", lambda m: m.type in ("error", "warning") and note(m.text[:200]))
        page.on("pageerror", lambda e: note(str(e)[:200]))
        page.on("requestfailed", lambda r: note(f"missing {r.url[:120]}"))
        page.on("response", lambda r: r.status >= 400 and note(f"{r.status} {r.url[:120]}"))
        page.route(
            lambda url: not url.startswith((self.address, "data:", "blob:")),
            lambda route: (note(f"asks for {route.request.url[:120]}"), route.abort()),
        )
        page.add_init_script(before)
        page.goto(f"{self.address}/{name}", wait_until="load")
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        page.wait_for_function("!document.querySelector('[aria-busy=true]')")
        return page


def check_axe(page, name: str, mode: str) -> list[str]:
    "Serious and critical faults that axe-core finds."
    page.evaluate(AXE.read_text(encoding="utf8"))
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], elementRef: false})"
        ".then(r => r.violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html]))"
    )
    return [
        f"{name} ({mode}): axe {rule}, {count} times: {html[:160]}"
        for impact, rule, count, html in found if impact in ("serious", "critical")
    ]


def check_hover(page, name: str) -> list[str]:
    "The formula appears where the mouse or the keyboard is on a mention, and goes away again."
    mention = page.locator("article a.eqref:visible").first
    if not mention.count():
        return []
    mention.scroll_into_view_if_needed()
    mention.hover()
    shown = "#equation-tip:not([hidden]) mjx-container"
    try:
        page.wait_for_selector(shown, timeout=20_000)
    except Exception:
        return [f"{name}: no formula appears at {mention.text_content()}"]
    box = page.locator("#equation-tip").bounding_box()
    width = page.evaluate("document.documentElement.clientWidth")
    faults = []
    if box["x"] < 0 or box["x"] + box["width"] > width + 1:
        faults.append(f"{name}: the formula is cut off at {width}")
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    page.wait_for_selector("#equation-tip", state="hidden")
    return faults


def check_search(browser: Browser, site: Path, name: str) -> list[str]:
    "A page on which to search finds pages of its folder."
    language = re.search(r'<html lang="([\w-]+)"', (site / name).read_text(encoding="utf8"))[1]
    question = QUESTIONS[language]
    page = browser.open(f"{name}?q={quote(question)}", 1400)
    try:
        page.wait_for_selector("#search-results li a", timeout=30_000)
        faults = []
    except Exception:
        faults = [f"{name}: nothing is found for {question}"]
    page.close()
    return faults


def check_page(browser: Browser, name: str, axe: bool) -> list[str]:
    "One page in both widths and both modes."
    faults = []
    for width, dark in ((1400, False), (400, True)):
        page = browser.open(name, width, dark)
        mode = f"{width}, {'dark' if dark else 'light'}"
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            faults.append(f"{name} ({mode}): {wide} pixels wide")
        if page.locator("mjx-merror").count():
            faults.append(f"{name}: a formula that MathJax cannot read")
        faults += check_hover(page, f"{name} ({mode})")
        if axe:
            faults += check_axe(page, name, mode)
        page.close()
    return faults


def check(site: Path, names: list[str] | None = None, axe: bool = True, say=print) -> list[str]:
    "All faults of a site; with `names` only these pages are opened."
    faults = check_links(site)
    say("\n".join([*faults, f"links: {len(faults)} faults"]))
    names = names or page_names(site)
    server, address = serve(site)
    browser = Browser(address)
    try:
        for name in names:
            start, before = time.time(), len(browser.faults)
            found = check_page(browser, name, axe)
            found += check_play(browser, name, say) if name == PLAY else []
            found += browser.faults[before:]
            faults += found
            told = f"{name}: {len(found)} faults ({time.time() - start:.0f} s)"
            say("\n".join([*found, told]))
        before = len(browser.faults)
        searches = [name for name in page_names(site) if Path(name).name == "search.html"]
        found = [fault for name in searches for fault in check_search(browser, site, name)]
        found += browser.faults[before:]
        faults += found
        say("\n".join([*found, f"search: {len(found)} faults"]))
    finally:
        browser.close()
        server.shutdown()
    return faults


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_site" / "html")
    parser.add_argument("--pages", nargs="*", help="only these, without .html")
    parser.add_argument("--no-browser", action="store_true", help="links only")
    given = parser.parse_args(args)
    site = given.site.resolve()
    if not (site / "index.html").exists():
        sys.exit(f"{site} holds no site: python tools/build_site.py")
    if given.no_browser:
        faults = check_links(site)
        print("\n".join(faults))
    elif missing := no_browser():
        sys.exit(missing)
    else:
        names = given.pages and [f"{n.removesuffix('.html')}.html" for n in given.pages]
        faults = check(site, names, AXE.exists())
    print(f"{len(faults)} faults" if faults else "no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
