"""The files of the page on which Catch and its dream are played: the programs of docs/play, the
agent that comes with the book as ONNX files, onnxruntime-web, and what PyTorch says, for the check.

`build_site.py` calls this. Nothing of it is fetched before that page is opened."""
import base64
import importlib.util
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "play"
AGENT = ROOT / "nbs" / "data" / "catch-agent"
ENGINE = ROOT / "docs" / "node_modules" / "onnxruntime-web" / "dist"
ENGINE_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MOST = 20e6                             # bytes that a reader fetches
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")
KEYS = [[0, 2, 2, 1, 2], [0, 1, 0]]     # actions of the example: before its dream, and in it


def missing() -> str:
    "What to install before the page can be made; the empty string if nothing."
    if not ENGINE.is_dir():
        return "The site needs MathJax and onnxruntime-web: npm ci --prefix docs"
    if not all(map(importlib.util.find_spec, NEEDED)):
        return 'The page to play on needs ONNX: pip install -e ".[docs]"'
    return ""


def plain(side) -> dict:
    "What both sides of a session are compared by."
    return {"z": side.z[0].tolist(), "policy": side.policy.softmax(-1)[0].tolist(),
            "value": side.value, "reward": side.reward, "over": bool(side.over)}


def reference(agent, graphs: dict) -> dict:
    """What PyTorch makes of a dream at temperature 0, and of a game that turns into a dream; frames
    as base64. The page must say the same."""
    from simulus_nb.catch import Catch
    from simulus_nb.export import likeliest
    from simulus_nb.play import begin, session, step
    s = session(agent, Catch(), horizon=30, temperature=0.0, seed=1)
    column, start, shown = int(s.env.unwrapped.ball[1]), s.real.z, []
    def show() -> None:
        frame = base64.b64encode(s.real.shown["obs"].tobytes()).decode()
        dream = s.dream and plain(s.dream)
        shown.append({"frame": frame, "real": plain(s.real), "dream": dream})
    show()
    for action in KEYS[0]:
        step(s, [action])
        show()
    begin(s)
    show()
    for action in KEYS[1]:
        step(s, [action])
        show()
    return {"start": start[0].tolist(), "likeliest": likeliest(graphs, graphs, start, 200).tolist(),
            "column": column, "keys": KEYS, "shown": shown}


def add(out: Path) -> float:
    "Write the files into a folder, which is replaced; returns the megabytes that a reader fetches."
    from simulus_nb.agent import Agent
    from simulus_nb.export import LIMIT, export_agent, graphs_of
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.css")]:
        shutil.copy(path, out)
    (out / "ort").mkdir()
    for name in ENGINE_FILES:
        shutil.copy(ENGINE / name, out / "ort")
    agent = Agent.load(AGENT)
    manifest = export_agent(agent, out / "agent")
    apart = max(manifest["self_test"]["apart"].values())
    assert apart <= LIMIT, f"the files and the agent of {AGENT} differ by {apart}"
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert size <= MOST, f"{size / 1e6:.1f} MB are too many for a page"
    text = json.dumps(reference(agent, graphs_of(agent)))
    (out / "check.json").write_text(text, encoding="utf8")
    return size / 1e6


def page() -> str:
    "The page as Markdown."
    return (PAGE / "page.md").read_text(encoding="utf8")
