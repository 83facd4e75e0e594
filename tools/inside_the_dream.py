"""Chapter 26 in full: the world model that it looks into, and agents of another library that
practise in its dreams.

    simulus-nb train --seed 0 --threads 1 --collect.epsilon 1 --train-c.start 1000000 \\
        --evaluation.every 0 --controller.width 8 --controller.channels 8 8 \\
        --controller.embedding 8 --out runs/catch-random
    python tools/inside_the_dream.py runs/catch-random [--seeds 5] [--machine TEXT]

The first command learns V and M from random play (C stays as it was made, and small). The second
stores them as nbs/data/catch-dream, trains and stores those of the small world Rain as
nbs/data/rain-dream, lets PPO practise in the dream of Catch and play the real game, and writes
nbs/results/dream-ppo.json. The code of the experiment is that of the chapter: its cells that name
this file. Needs the development requirements (stable-baselines3); about ten minutes on one CPU
core.
"""
import argparse
import json
import platform
import shutil
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from simulus_nb.agent import Agent
from simulus_nb.config import flat
from simulus_nb.run_folder import RunFolder, git_commit

NBS = Path(__file__).resolve().parents[1] / "nbs"
STEPS = {"tokens": 20_480, "images": 40_960}                    # of PPO, all dreamt


def chapter() -> dict:
    "The definitions of the experiment, from the chapter's cells that name this file."
    cells = json.loads((NBS / "26_inside_the_dream.ipynb").read_text(encoding="utf8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict = {}
    exec("\n".join(s for s in sources if Path(__file__).name in s), names)
    return names


def store(agent: Agent, name: str) -> int:
    "Put an agent where the chapter finds it; its bytes."
    target = NBS / "data" / name
    shutil.rmtree(target, ignore_errors=True)
    agent.save(target)
    return sum(p.stat().st_size for p in target.rglob("*") if p.is_file())


def store_world(run: Path) -> dict:
    "Store the run's agent; what it took to make it."
    folder = RunFolder(run)
    manifest, config = json.loads(folder.manifest.read_text()), folder.read_config()
    return dict(
        command=manifest["command"], env_steps=manifest["env_steps"],
        wall_seconds=manifest["wall_seconds"], seed=config.seed, settings=flat(config),
        bytes=store(Agent.load(run), "catch-dream")
    )


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "run", type=Path, help="folder of the run that learnt from random play; only read"
    )
    p.add_argument("--seeds", type=int, default=5, help="runs of PPO with each kind of observation")
    p.add_argument("--machine", default="")
    p.add_argument("--only-worlds", action="store_true", help="store the two agents and stop")
    a = p.parse_args()
    torch.set_num_threads(1)
    world, play = store_world(a.run), chapter()
    print("bytes:", world["bytes"], store(play["train_rain"](seed=0), "rain-dream"), flush=True)
    if a.only_worlds:
        return
    agent = Agent.load(NBS / "data" / "catch-dream")
    replay, runs = play["random_play"](agent, play["Catch"], 1_200, seed=1), []
    for kind, steps in STEPS.items():
        for seed in range(a.seeds):
            curve, seconds, model = [], 0.0, None
            for _ in range(4):
                begin = time.perf_counter()
                model, dreamt = play["practise"](
                    agent, replay, steps // 4, seed, tokens=kind == "tokens", model=model
                )
                seconds += time.perf_counter() - begin
                real = play["in_reality"](model, agent, tokens=kind == "tokens", episodes=200)
                curve.append(
                    [model.num_timesteps, round(dreamt, 4), round(real.mean, 4), round(seconds, 1)]
                )
            runs.append(dict(observation=kind, seed=seed, curve=curve, returns=list(real.returns)))
            print(kind, seed, curve, flush=True)
    chance = play["in_reality"](None, agent, tokens=False, episodes=400)
    versions = {
        name: version(name) for name in ("torch", "numpy", "gymnasium", "stable-baselines3")
    }
    out = dict(
        command=f"python tools/{Path(__file__).name} RUN --seeds {a.seeds}", machine=a.machine,
        date=str(date.today()), python=platform.python_version(), versions=versions,
        git_commit=git_commit(), world=world, random=dict(mean=chance.mean, sem=chance.sem),
        speed=play["speed"](agent, replay, 64, 100), runs=runs
    )
    (NBS / "results" / "dream-ppo.json").write_text(
        json.dumps(out, separators=(",", ":")) + "\n", encoding="utf8"
    )


if __name__ == "__main__":
    main()
