"""The page on which Catch and its dream are played: what it is made of, and that its networks, its
game and its sessions are those of the library, also in a browser."""
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import check_play
import check_site
import play_site

have = all(map(importlib.util.find_spec, play_site.NEEDED))
onnx = pytest.mark.skipif(not have, reason='pip install "simulus-nb[play]"')
browser = pytest.mark.skipif(
    bool(play_site.missing() or check_site.no_browser()),
    reason=play_site.missing() or check_site.no_browser() or "-"
)


def test_the_page_asks_for_nothing_from_elsewhere():
    for path in play_site.PAGE.iterdir():
        assert "http" not in path.read_text(encoding="utf8").replace("http.server", ""), path


def test_what_the_programs_look_for_is_on_the_page():
    text, page = (play_site.PAGE / "page.js").read_text(), play_site.page()
    for kind in ("data-do", "name", "data-side"):
        assert f'{kind}="' in page
    for name in ("run", "one", "back", "begin", "new"):
        assert f'data-do="{name}"' in page and f"{name}:" in text
    there = sum(page.count(f"<{kind}") for kind in ("button", "select", "input"))
    assert page.count(" disabled>") == there    # until all is loaded


def test_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(play_site, "ENGINE", tmp_path / "none")
    assert "npm ci" in play_site.missing()
    monkeypatch.setattr(play_site, "ENGINE", tmp_path)
    monkeypatch.setattr(play_site, "NEEDED", ("no_such_module",))
    assert "pip install" in play_site.missing()


@pytest.fixture(scope="module")
def example():
    "The agent of the page and what PyTorch says of it."
    from simulus_nb.agent import Agent
    from simulus_nb.export import graphs_of
    agent = Agent.load(play_site.AGENT)
    return agent, play_site.reference(agent, graphs_of(agent))


def test_the_example_is_a_game_that_becomes_a_dream(example):
    shown, (before, inside) = example[1]["shown"], example[1]["keys"]
    assert len(shown) == 1 + len(before) + 1 + len(inside) and len(example[1]["likeliest"]) == 200
    assert [x["dream"] is None for x in shown] == [True] * (1 + len(before)) + [False] * 4
    begun = shown[len(before) + 1]
    assert begun["dream"]["z"] == begun["real"]["z"] and not shown[-1]["real"]["over"]
    pairs = [(x["dream"]["z"], x["real"]["z"]) for x in shown if x["dream"]]
    apart = sum(a != b for dream, real in pairs for a, b in zip(dream, real))
    assert apart <= 2                               # of 16: M knows this game
    assert json.loads(json.dumps(example[1])) == example[1]


def serve(folder, part, name="index.html"):
    "A bare page with one part of the real one in a folder; a browser that stands there."
    server, address = check_site.serve(folder)
    (folder / name).write_text(
        f"<!doctype html><html data-ready=yes lang=en><title>x</title><h1>x</h1>{part}</html>"
    )
    return server, check_site.Browser(address)


@browser
@onnx
def test_the_page_in_chromium(tmp_path):
    size = play_site.add(tmp_path / "_static" / "play")
    assert 1 < size <= 20
    part = play_site.page().partition("```{raw} html\n")[2].partition("```")[0]
    server, chromium = serve(tmp_path, part)
    try:
        assert check_play.check_play(chromium, "index.html") == [] == chromium.faults
    finally:
        chromium.close()
        server.shutdown()


@browser
@onnx
def test_a_mixed_world_dreams_the_same_in_chromium(tmp_path):
    from test_dream import Mixed, world

    from simulus_nb.export import export_agent, graphs_of, likeliest
    agent, replay = world(Mixed)
    for path in play_site.PAGE.glob("*.js"):
        shutil.copy(path, tmp_path)
    shutil.copytree(play_site.ENGINE, tmp_path / "ort", ignore=lambda _, names: {
        name for name in names if name not in play_site.ENGINE_FILES
    })
    export_agent(agent, tmp_path / "agent", steps=5)
    graphs, z = graphs_of(agent), replay.tokens[:1].long()
    dream = likeliest(graphs, graphs, z, 200).tolist()
    wanted = {"start": z[0].tolist(), "likeliest": dream}
    (tmp_path / "check.json").write_text(json.dumps(wanted))
    server, chromium = serve(tmp_path, "")
    try:
        page = chromium.open("index.html", 1400)
        assert check_play.compare(page, "./", wanted) == [] == chromium.faults
        dream[150][0] += 1                          # a fault would be found
        assert "step 151" in check_play.compare(page, "./", wanted)[0]
    finally:
        chromium.close()
        server.shutdown()
