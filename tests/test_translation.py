"""The pages as messages, and their translations: nothing lost, nothing out of date, the same
formulas, code and links in both languages, the same words for the same notions."""
import copy
import importlib.util
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("babel")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import build_site
import site_pages as pages
import translations

BOOK = pages.read_book()
EDITIONS = {e.language: e for e in translations.editions()}
FILES = [(language, page) for language, e in EDITIONS.items() for page in e.pages]
EACH = pytest.mark.parametrize("language, page", FILES)
CHINESE = r"\u3400-\u9fff"
# what reads the same in Chinese: names, and words that the note does not translate
SAME_IN_CHINESE = {
    "simulus-nb", "[Retention](10_retention.ipynb)", "[RetNet](11_retnet.ipynb)", "**Atari**",
    "[Checkpoints](19_checkpoint.ipynb)", "[Atari-100K](37_atari.ipynb)",
    "Atari 10; 9. DMC 20; 20. Craftax 20; 19",
}


def pairs(language, page):
    "Messages of a page with their translations."
    known = EDITIONS[language].pages[page]
    return [(m, known[m]) for m in translations.messages(page) if m in known]


# ------------------------------------------------------------------------------- the translations

def test_what_is_translated():
    "The preface and the first two pages after it, and the words of the site."
    first = {c.stem for c in BOOK.chapters[:3]}
    assert {"site", *first} <= set(EDITIONS["zh_CN"].pages)


@EACH
def test_every_message_has_a_translation_of_today(language, page):
    found = translations.faults(language, page)
    assert not found, "python tools/translations.py --merge, then mend:\n" + "\n".join(found)


@EACH
def test_formulas_code_links_and_equations_are_those_of_the_original(language, page):
    mentions = re.compile(rf"\(({pages.NUMBER})\)")
    for english, told in pairs(language, page):
        for what in (translations.SAME, mentions):
            kept = lambda text: Counter(m[0] for m in what.finditer(text))
            assert kept(english) == kept(told), f"{page}: {english}\n{kept(english) ^ kept(told)}"


@EACH
def test_emphasis_is_that_of_the_original(language, page):
    "Marks beside Chinese punctuation can fail to open or to close."
    reader = pytest.importorskip("markdown_it").MarkdownIt()
    def emphasis(text):
        text = translations.SAME.sub(lambda m: "](x)" if m[0][0] == "]" else "x", text)
        tokens = [c.type for t in reader.parse(text) for c in t.children or []]
        return [tokens.count(k) for k in ("em_open", "strong_open", "link_open", "image")]
    for english, told in pairs(language, page):
        assert emphasis(english) == emphasis(told), f"{page}: {told}"


@pytest.mark.parametrize("page", EDITIONS["zh_CN"].pages)
def test_chinese_is_chinese(page):
    for english, told in pairs("zh_CN", page):
        names = english in SAME_IN_CHINESE or "arXiv" in english
        assert re.search(f"[{CHINESE}]", told) or names, english
        assert not re.search(f"[{CHINESE}][,.;:!?]|  |[，。；：！？、]{{2}}", told), told
        assert told == told.strip() and told.count("（") == told.count("）"), told


def terms(language):
    "How the notions are called: English words, and a pattern."
    text = (translations.LOCALE / language / "terms.tsv").read_text(encoding="utf8")
    return [line.split("\t") for line in text.splitlines()]


@EACH
def test_a_notion_has_one_name(language, page):
    for english, told in pairs(language, page):
        for word, name in terms(language):
            if re.search(rf"\b{word}s?\b", translations.SAME.sub(" ", english)):
                assert re.search(name, told, re.I), f"{page}: {word} is called {name}: {told}"


# ---------------------------------------------------------------------------------- from pages

@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_page_is_the_sum_of_its_pieces(path):
    page, met = translations.read_page(path.stem), []
    assert translations.walk(page, lambda cell, message: met.append(message)) == page
    assert met and all(translations.has_words(m) and "\n" not in m for m in met)
    headings = {
        line.lstrip("# ") for c in page.cells if c.cell_type == "markdown"
        for line in re.sub(r"^```.*?^```", "", c.source, flags=re.S | re.M).splitlines()
        if re.match(r"#+ .*[a-z]{2}", line)
    }
    assert headings <= set(met)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("# The problem\n\n> Of it\n> all.\n", ["The problem", "Of it all."]),
        ("One line\nand the next.\n\nAnother.", ["One line and the next.", "Another."]),
        ("Before,\n\n$$ a = b. \\tag{1.1} $$\n\nafter.", ["Before,", "after."]),
        ("So\n$$\na \\text{and} b\n$$\nit is.", ["So", "it is."]),
        ("- one $x$\n  of two\n- `code`\n\n1. three", ["one $x$ of two", "three"]),
        ("Do\n```bash\npip install it\n```\nnow.", ["Do", "now."]),
        ("| a word | $x$ |\n|---|---|\n| 12 | `f(\\|x\\|)` is |", ["a word", "`f(\\|x\\|)` is"]),
        ("<details><summary>Is $a<b$?</summary>\n\nYes.\n</details>", ["Is $a<b$?", "Yes."]),
        ("<!-- results -->\n![A ball](images/x.png)", ["![A ball](images/x.png)"]),
        ("[02](02_replay.ipynb), $K_i$\n\n**7**", []),
    ],
)
def test_what_is_a_message(source, expected):
    assert [m for _, m in translations.split(source) if m] == expected
    assert "".join(text for text, _ in translations.split(source)) == source
    marked = translations.rewrite(source, lambda m: f"<{m}>")
    assert all(f"<{m}>" in marked for m in expected)
    assert translations.rewrite(marked, lambda m: m).count("$") == source.count("$")


def test_numbers_that_were_printed_are_places():
    text = (
        "It scores **+1.00** over 2,880 games, in $K_2^{3}$ at 2026-11-29.\n\n"
        "*Figure Q.3. Of 5 runs.*\n"
    )
    met = []
    translations.rewrite(text, lambda m: met.append(m), printed=True)
    assert met == ["It scores **{0}** over {1} games, in $K_2^{{2}}$ at {3}.",
                   "*Figure Q.3. Of {0} runs.*"]
    told = {met[0]: "{3}，{1} 局 **{0}** 分 $K_2^{{2}}$。", met[1]: "*图 Q.3. {0} 次。*"}
    assert translations.rewrite(text, told.get, printed=True) == (
        "2026-11-29，2,880 局 **+1.00** 分 $K_2^{3}$。\n\n*图 Q.3. 5 次。*\n"
    )
    again = text.replace("1.00", "0.93").replace("5 runs", "7 runs")
    assert "7 次" in translations.rewrite(again, told.get, printed=True)


def changed_page(page, old, new):
    "A page in which some English words are others."
    made = copy.deepcopy(translations.read_page(page))
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(old, new)
    return made


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "The translations in a folder in which they may be changed."
    for language, page in FILES:
        path = translations.po_file(language, page)
        copied = tmp_path / language / "LC_MESSAGES" / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    monkeypatch.setattr(translations, "LOCALE", tmp_path)
    return monkeypatch


def test_a_changed_paragraph_is_named_with_its_line(elsewhere):
    before = "A quiet hum after two loud ones is even worse news"
    page = changed_page("00_spaces", before, before.replace("even worse", "far better"))
    elsewhere.setattr(translations, "read_page", lambda stem: page)
    (told,) = translations.faults("zh_CN", "00_spaces")
    path, line, place, said = re.match(r"(\S+):(\d+): (\S+): (.*)", told).groups()
    assert place == "nbs/00_spaces.ipynb#c014"
    assert re.search(r'even worse.*" became ".*far better', said)
    lines = translations.po_file("zh_CN", "00_spaces").read_text(encoding="utf8").splitlines()
    assert path.endswith("00_spaces.po") and "msgid" in lines[int(line) - 1]
    assert "Bars of one colour" in lines[int(line)]


def test_lines_broken_elsewhere_change_nothing(elsewhere):
    page = changed_page("00_spaces", "A quiet hum after two loud", "A quiet\nhum after two  loud")
    elsewhere.setattr(translations, "read_page", lambda stem: page)
    assert translations.faults("zh_CN", "00_spaces") == []


def test_merging_marks_what_changed_and_a_mended_text_is_taken(elsewhere, capsys):
    page = changed_page("00_spaces", "pays nothing, and when", "earns nothing, and when")
    read = translations.read_page
    elsewhere.setattr(
        translations, "read_page", lambda stem: page if stem == "00_spaces" else read(stem)
    )
    with pytest.raises(SystemExit) as stopped:
        translations.main(["--merge"])
    said = capsys.readouterr().out
    assert stopped.value.code == 1 and said.count("became") == 1
    path = translations.po_file("zh_CN", "00_spaces")
    text = path.read_text(encoding="utf8")
    assert text.count("#, fuzzy") == 1 and re.search("# Was: A machine(\n|.)*pays nothing", text)
    known = next(e for e in translations.editions() if e.language == "zh_CN").pages["00_spaces"]
    assert len(known) == len(translations.messages("00_spaces")) - 1   # shown in English till then
    path.write_text(text.replace("#, fuzzy\n", ""), encoding="utf8")
    with pytest.raises(SystemExit) as stopped:
        translations.main([])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit):
        translations.main(["--merge"])
    assert "# Was" not in path.read_text(encoding="utf8")
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        translations.main(["--merge"])
    assert path.read_bytes() == before


def test_templates_of_all_pages(elsewhere, tmp_path):
    with pytest.raises(SystemExit):
        translations.main(["--pot", str(tmp_path / "pot")])
    for name in ("site", "index", "10_retention", "Z_equations"):
        made = translations.load(tmp_path / "pot" / f"{name}.pot")
        assert [m.id for m in made if m.id] == list(translations.messages(name))


def test_a_page_is_begun(elsewhere, capsys):
    with pytest.raises(SystemExit):
        translations.main(["--add", "fr", "01_envs"])
    count = len(translations.messages("01_envs"))
    assert f"fr, 01_envs: {count} out of date" in capsys.readouterr().out
    (edition,) = (e for e in translations.editions() if e.language == "fr")
    assert edition.notebook("01_envs", page := translations.read_page("01_envs")) == page
    assert (edition.name, edition.tag, edition.folder) == ("français", "fr", "fr")


# ---------------------------------------------------------------------------------- to pages

HOME = replace(BOOK, editions=list(EDITIONS.values()))
BOOKS = {language: pages.translated(HOME, e) for language, e in EDITIONS.items()}
CHAPTERS = [(language, c) for language, book in BOOKS.items() for c in book.chapters]


@pytest.mark.parametrize("language, chapter", CHAPTERS, ids=lambda x: getattr(x, "stem", x))
def test_a_translated_page_differs_from_the_original_in_words_only(language, chapter):
    (original,) = (c for c in BOOK.chapters if c.stem == chapter.stem)
    made, english = pages.page(chapter, BOOKS[language]), pages.page(original, HOME)
    nbformat.validate(made)
    assert [c.cell_type for c in made.cells] == [c.cell_type for c in english.cells]
    for a, b in zip(made.cells, english.cells):
        if a.cell_type == "code":
            assert a.source == b.source and a.metadata.get("tags") == b.metadata.get("tags")
            assert [o.output_type for o in a.outputs] == [o.output_type for o in b.outputs]
            if any("image/png" in o.get("data", {}) for o in a.outputs) and language == "zh_CN":
                assert re.search(f"[{CHINESE}]", a.metadata["book"]["alt"])
        else:
            count = lambda c: (c.source.count("$$"), c.source.count("<details"))
            assert count(a) == count(b)


def test_links_lead_to_the_page_in_the_same_language_or_to_the_english_one():
    book = BOOKS["zh_CN"]
    assert pages.links("[a](00_spaces.ipynb)", book) == "[a](00_spaces.ipynb)"
    assert pages.links("[a](10_retention.ipynb)", book) == "[a](english:10_retention.html)"
    assert pages.links("[a](02_replay.ipynb#The-B)", book) == "[a](english:02_replay.html#the-b)"
    assert pages.links("[a](../LICENSE)", book) == pages.links("[a](../LICENSE)", BOOK)
    (spaces,) = (c for c in book.chapters if c.stem == "00_spaces")
    assert '<a href="../00_spaces.html" lang="en" hreflang="en">English</a>' in (
        pages.head_links(spaces, book))
    assert '<a href="zh/00_spaces.html" lang="zh-CN" hreflang="zh-CN">中文</a>' in (
        pages.head_links(spaces, HOME))
    assert "zh/" not in pages.head_links(BOOK.chapters[-1], HOME)
    assert pages.toctree(book).split()[2:-1] == ["000_quickstart", "00_spaces"]


def test_a_translated_page_from_a_notebook():
    notebook = new_notebook(cells=[
        new_markdown_cell("# Sums\n\n> Of two."),
        new_code_cell(
            "#| fig-alt: A sum.\n1 + 1",
            outputs=[new_output("execute_result", {"text/markdown": "It is **2**."})]
        ),
        new_code_cell("#| hide\n#| fig-alt: A sum.\n1 + 1"),
        new_markdown_cell("Not translated."),
    ])
    edition = translations.Edition("zh_CN", {
        "00_sums": {
            "Sums": "和", "Of two.": "两个数的。", "A sum.": "一个和。",
            "It is **{0}**.": "是 **{0}**。"
        }
    })
    made = edition.notebook("00_sums", notebook)
    title, code, hidden, last = made.cells
    assert title.source == "# 和\n\n> 两个数的。" and last.source == "Not translated."
    assert code.source == "#| fig-alt: 一个和。\n1 + 1" and hidden.source.endswith("A sum.\n1 + 1")
    assert code.outputs[0].data["text/markdown"] == "是 **2**。"
    assert notebook.cells[0].source.startswith("# Sums")


def test_what_the_site_says_of_equations_is_in_the_language_of_the_page():
    text = build_site.equations(BOOKS["zh_CN"], BOOK)
    word = EDITIONS["zh_CN"].pages["00_spaces"]["The problem"].encode("unicode_escape").decode()
    assert f'"where": "0. {word}"' in text and '"where": "10. Retention"' in text
    assert "window.WORDS = {" in text and "WORDS" not in build_site.equations(BOOK)


@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="Sphinx is not installed")
def test_chinese_is_found_without_blanks_between_words(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import book
    search = book.Chinese({})
    words = set(map(search.stem, search.split("世界模型 M 读 tokens，得到 p(0.5)")))
    assert {"世界", "界模", "模型", "读", "得到", "token"} <= words and "世界模型" not in words
    found = [m["chapter"] for m in book.MENTION.finditer("第 16 章、附录 B、第 3 行、Chapter 7")]
    assert found == ["16", "B", "7"]
    assert [m[0] for m in book.MENTION.finditer("见第 16 章。")] == ["第 16 章"]
