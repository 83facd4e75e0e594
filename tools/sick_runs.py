"""The patients of the chapter "My agent does not learn": small runs, healthy and sick.

    python tools/sick_runs.py runs/sick [--only NAME ...] [--episodes 40]

trains every run of the chapter (its cells that name this file) in a folder of its own, unless it is
finished there already, looks at it as `simulus-nb inspect` does, and writes what it found to
nbs/data/sick-runs.json, where runs that were not asked for stay. About half a minute to a minute
of one CPU core for each run.
"""
import argparse
import json
import re
import shlex
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch

from simulus_nb.cli import load_replay
from simulus_nb.health import as_json, gather, look
from simulus_nb.run_folder import agent_of, circumstances
from simulus_nb.run_setup import makers_of
from simulus_nb.trainer import Trainer

NBS = Path(__file__).resolve().parents[1] / "nbs"
CHAPTER, TARGET = "*_not_learning.ipynb", NBS / "data" / "sick-runs.json"


def chapter() -> dict:
    "The definitions of the runs, from the chapter's cells that name this file."
    cells = json.loads(next(NBS.glob(CHAPTER)).read_text(encoding="utf8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict = {}
    exec("\n".join(s for s in sources if Path(__file__).name in s), names)
    return names


def examined(folder, change: dict, episodes: int) -> dict:
    "What `inspect` says of a run; `change` is made to its settings first."
    config, agent = agent_of(folder)
    replay, priorities = load_replay(folder, config, agent)
    judged = config.change(change)
    evidence = gather(
        agent, judged, replay, folder.history(), makers_of(judged), episodes, max_steps=500,
        priorities=priorities
    )
    return as_json(evidence, look(evidence))


def record(name: str, patient, out: Path, episodes: int, command: str) -> dict:
    "Train a run, if that is not done yet, and look at it."
    place = out / re.sub(r"\W+", "-", patient.trained or name)
    trainer = Trainer(patient.config, place, resume=place.exists(), progress=False, command=command)
    trainer.train()
    found = examined(trainer.folder, patient.judged, episodes)
    print(f"{name:<26}{trainer.result.mean:7.2f}  "
          + ", ".join(r["name"] for r in found["readings"] if not r["ok"]), flush=True)
    facts = circumstances(patient.config, trainer.device, command)
    return {"date": date.today().isoformat(), "changed": patient.change | patient.judged, **facts,
            "epochs": trainer.epoch, "env_steps": trainer.env_steps,
            "return": trainer.result.mean, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--episodes", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    patients = chapter()["PATIENTS"]
    command = shlex.join(["python", "tools/sick_runs.py", *sys.argv[1:]])
    found = json.loads(TARGET.read_text(encoding="utf8")) if TARGET.exists() else {}
    make = partial(record, out=args.out, episodes=args.episodes, command=command)
    for name in args.only or patients:
        found[name] = make(name, patients[name])
        rows = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in patients if key in found]
        TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf8")


if __name__ == "__main__":
    main()
