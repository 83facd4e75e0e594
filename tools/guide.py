"""The tables of the user guide in docs/guide: what the commands of its pages print, what their runs
score, and what settings cost.

    python tools/guide.py               # measures again: about ten minutes of one CPU core
    python tools/guide.py --work DIR    # the same in a folder that is kept, to be gone on with
    python tools/guide.py --tables      # only writes the tables of docs/guide/results.json anew

A table stands in a page between <!-- results: NAME --> and <!-- end -->."""
import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path

import site_pages as pages

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
STORED = GUIDE / "results.json"
# What the page on settings doubles, in the preset `catch`.
DOUBLED = (
    "collect.steps", "train_v.steps", "train_m.steps", "train_m.batch", "train_m.segment",
    "world_model.retnet.layers", "world_model.retnet.width", "train_c.steps", "train_c.batch",
    "train_c.horizon", "controller.width", "tokenizer.image.image_size"
)
# Presets in the table of that page.
SHOWN = "catch", "small", "minigrid", "minatar", "control", "dmc-small", "atari100k", "dmc"


# ------------------------------------------------------------------------------------ pages

def blocks(text: str, language: str) -> list[str]:
    "The fenced blocks of a page in a language, in order."
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.S | re.M)


def source(page: str) -> str:
    "All Python blocks of a page as one file."
    text = (GUIDE / f"{page}.md").read_text(encoding="utf8")
    return "\n\n\n".join(blocks(text, "python")) + "\n"


def commands(text: str) -> list[list[str]]:
    "The commands of ours in a page's shell blocks, as words; lines that end in \\ are joined."
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    found = (re.search(r"(?:^|\s)(?:simulus-nb|-m simulus_nb\.cli) (.*)", line) for line in lines)
    return [shlex.split(m[1].removesuffix("&")) for m in found if m]


def with_tables(text: str, made: dict[str, str]) -> str:
    "A page with its tables written anew."
    put = lambda m: f"<!-- results: {m[1]} -->\n{made[m[1]]}\n<!-- end -->"
    return re.sub(r"<!-- results: ([\w-]+) -->\n.*?<!-- end -->", put, text, flags=re.S)


# ---------------------------------------------------------------------------------- measuring

def run(words: list[str], folder: Path, again: bool = False) -> str:
    "What a program of Python prints, run in a folder; not again where it is kept what it printed."
    kept = folder / "said.json"
    said, key = json.loads(kept.read_text()) if kept.exists() else {}, shlex.join(words)
    if again or key not in said:
        done = subprocess.run([sys.executable, *words], cwd=folder, stdout=subprocess.PIPE,
                              encoding="utf8", env=os.environ | {"OMP_NUM_THREADS": "1"})
        print(f"$ python {key}   [{done.returncode}]", flush=True)
        said[key] = done.stdout
        kept.write_text(json.dumps(said))
    return said[key]


def shell(words: list[str], folder: Path) -> str:
    "The same of a command of ours; a run that was begun goes on."
    train = words[0] == "train"
    if train and (folder / words[words.index("--out") + 1] / "config.json").exists():
        kept = [x for w in ("--steps", "--out") for x in (w, words[words.index(w) + 1])]
        words = ["train", "--resume", "--allow-import", *kept]
    return run(["-m", "simulus_nb.cli", *words], folder, again=train)


def complaints(report: str) -> list[str]:
    "The lines of `inspect` that say look here, each with its advice; and the last line."
    lines = report.splitlines()
    found = [x for i, line in enumerate(lines) if "  look here" in line
             for x in lines[i:i + 2]]
    return [*found, *(line for line in lines if line.startswith(("begin with", "nothing to")))]


def own_environment(folder: Path) -> dict:
    "The commands of the page, word for word and in order; and what came of them."
    (folder / "cold_store.py").write_text(source("own_environment"), encoding="utf8")
    text = (GUIDE / "own_environment.md").read_text(encoding="utf8")
    said = [(words, shell(words, folder)) for words in commands(text)]
    found = {"doctor": [s for words, s in said if words[0] == "doctor"], "runs": {}, "players": {}}
    for name in ("first", "mended"):
        score = json.loads((folder / "runs" / name / "evaluation.json").read_text())
        report = next(s for words, s in said if words[:2] == ["inspect", f"runs/{name}"])
        found["runs"][name] = {"mean": score["mean"], "sem": score["sem"],
                               "report": report.splitlines()}
    for path in sorted((folder / "runs" / "baselines").rglob("*.json")):
        record = json.loads(path.read_text())
        found["players"][record["player"]] = as_score(record["returns"]) | {
            "settings": record["settings"]
        }
    rule = "import cold_store; print(list(cold_store.score_of_thermostat().returns))"
    found["players"]["thermostat"] = as_score(json.loads(run(["-c", rule], folder)))
    return found


def as_score(returns: list[float]) -> dict:
    "Mean and standard error."
    n, mean = len(returns), sum(returns) / len(returns)
    return {"mean": mean, "sem": (sum((x - mean)**2 for x in returns) / (n - 1) / n)**0.5}


def recorded(folder: Path) -> dict:
    "The file of that page, run as a program."
    (folder / "recorded.py").write_text(source("recorded_episodes"), encoding="utf8")
    mean, steps = run(["recorded.py"], folder).split()[-2:]
    return {"mean": float(mean), "env_steps": int(steps)}


def presets() -> list[dict]:
    "What a run of each preset amounts to."
    from simulus_nb.config import cost, preset
    return [{"preset": n, "env": preset(n).env, **cost(preset(n))} for n in SHOWN]


def bill(config) -> dict:
    "Products and calls of a whole run, and the memory of its largest part."
    from simulus_nb.bench import run_counts
    from simulus_nb.rehearsal import needs
    from simulus_nb.run_setup import infer_specs
    parts, _ = needs(config, *infer_specs(config))
    times = [(n, parts[name]) for name, n in run_counts(config).items() if name in parts]
    return {"flops": sum(n * p.flops for n, p in times),
            "calls": sum(n * p.calls for n, p in times),
            "bytes": max(p.bytes for p in parts.values())}


def doubled(*names: str) -> list[dict]:
    "The bill of `catch` with one setting doubled at a time, as multiples of its own."
    from simulus_nb.config import flat, preset
    base, rows = preset("catch"), []
    own = bill(base)
    for name in names:
        was = flat(base)[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                     # longer dreams than segments
            other = bill(base.change({name: 2 * was}))
        rows.append({"setting": name, "from": was, "to": 2 * was,
                     **{key: other[key] / own[key] for key in own}})
    return rows


def measure(folder: Path) -> dict:
    "Everything that the pages quote."
    from simulus_nb.origin import git_commit, processor, versions
    folder.mkdir(parents=True, exist_ok=True)
    found = {"own": own_environment(folder), "recorded": recorded(folder), "presets": presets(),
             "costs": doubled(*DOUBLED)}
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"command": "python tools/guide.py", "date": str(date.today()), "commit": git_commit(),
            "machine": processor(), "versions": versions(), "kilobytes": memory, **found}


# ------------------------------------------------------------------------------------ tables

def table(head: str, rows: list[str]) -> str:
    "A table in Markdown."
    line = "|" + "---|" * head.count(" | ") + "---|"
    return "\n".join([f"| {head} |", line, *(f"| {row} |" for row in rows)])


def euros(score: dict, factor: float = 1.0) -> str:
    "What a day costs."
    return f"{-score['mean'] * factor:.0f} ± {score['sem'] * factor:.0f}"


def scores(own: dict) -> dict[str, str]:
    "Who pays what a day: rows by name."
    players, runs = own["players"], own["runs"]
    level = players["constant"]["settings"]["action"]
    return {
        "random": f"random actions | {euros(players['random'])}",
        "first": f"**the agent of the first attempt** | {euros(runs['first'], 1 / 100)}",
        "constant": f"level {level} for ever, the best constant | {euros(players['constant'])}",
        "thermostat": f"thermostat | {euros(players['thermostat'])}",
        "mended": f"**the agent of the mended store** | {euros(runs['mended'])}",
    }


def verdict(own: dict) -> str:
    "Who is ahead, in words."
    ours = own["runs"]["mended"]
    def beats(name):
        other = own["players"][name]
        apart = ours["mean"] - other["mean"]
        sure = abs(apart) > 2 * (ours["sem"]**2 + other["sem"]**2)**0.5
        much = f"{abs(apart):.0f} euros a day {'less' if apart > 0 else 'more'} than"
        return f"{much} the {name}" if sure else f"about as much as the {name}"
    left = complaints("\n".join(ours["report"]))[-1]
    said = f"`inspect` still says `{left}`" if left[:5] == "begin" else f"`inspect`: {left}"
    level = beats("constant").replace("the constant", "the best constant level")
    return f"The agent of the mended store costs {beats('thermostat')}, {level}. {said}."


def needs_table(book: pages.Book) -> str:
    "Which chapter needs what, as found in its code."
    rows = []
    for c in book.chapters:
        extras = ", ".join(f"`{e}`" for e in pages.needed_extras(c.notebook)) or "nothing more"
        link = f"[{c.name}](../../nbs/{c.stem}.ipynb)"
        rows.append(f"{link} | {extras} | {pages.WHOLE_RUNS.get(c.stem, '')}")
    return table("Page | Extras | A GPU is for", rows)


def tables(found: dict) -> dict[str, str]:
    "The text of every table, by name."
    own, who = found["own"], scores(found["own"])
    fenced = lambda lines: "\n".join(["```text", *(x.rstrip() for x in lines), "```"])
    stops, goes = ([x for x in said.splitlines() if x.startswith(("world", "memory", "verdict"))]
                   for said in own["doctor"])
    day = "player | euros a day, mean of 100 days ± standard error"
    c, made = found["recorded"], found["versions"]
    return {
        "doctor": fenced(stops), "ready": fenced(goes),
        "scores": table(day, [who[n] for n in ("random", "constant", "first", "thermostat")]),
        "first": fenced(complaints("\n".join(own["runs"]["first"]["report"]))),
        "mended": table(day, list(who.values())),
        "verdict": verdict(own),
        "made": f"`{found['command']}` on {found['date']}, commit {(found['commit'] or '-')[:7]}, "
                f"{found['machine']}, torch {made['torch']}, Python {made['python']}. One seed "
                "each: this page shows a way of working, no comparison of methods.",
        "recorded": f"Trained on 300 random games and {c['env_steps']} step of its own it scores "
                    f"**{c['mean']:+.2f}** in 100 real games. Random play gets -0.6 on average, "
                    "the best play +1.",
        "presets": table(
            "preset | world | steps | updates of V, M, C | looks | dreamt",
            [f"`{p['preset']}` | {p['env']} | {p['env_steps']:,} | {p['v']:,}, {p['m']:,}, "
             f"{p['c']:,} | {p['m_reuse']:.0f} | {p['c_dreamed']:.0f}" for p in found["presets"]]
        ),
        "costs": table(
            "setting | doubled | products | calls | memory",
            [f"`--{x['setting'].replace('_', '-')}` | {x['from']} → {x['to']} | "
             f"× {x['flops']:.2f} | × {x['calls']:.2f} | × {x['bytes']:.2f}"
             for x in found["costs"]]
        ),
        "memory": f"A run of a small preset takes {found['kilobytes'] / 1e6:.1f} GB of memory on "
                  "a CPU, most of it PyTorch itself.",
        "needs": needs_table(pages.read_book()),
    }


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--work", type=Path, help="folder to measure in; default: one for the time")
    given = parser.parse_args(args)
    if not given.tables:
        with tempfile.TemporaryDirectory() as folder:
            found = measure((given.work or Path(folder)).resolve())
        STORED.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf8")
    made = tables(json.loads(STORED.read_text(encoding="utf8")))
    for path in GUIDE.glob("*.md"):
        text = path.read_text(encoding="utf8")
        path.write_text(with_tables(text, made), encoding="utf8")


if __name__ == "__main__":
    main()
