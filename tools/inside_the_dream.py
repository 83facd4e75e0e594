"""Chapter 31 in full: the world model that it looks into, and agents of another library that
practise in its dreams.

    python tools/inside_the_dream.py runs/catch-random [--seeds 5]
    python tools/inside_the_dream.py --only speed

The run is that of the command printed at the top of the chapter: V and M learn from random play (C
stays as it was made, and small). The first line stores them as nbs/data/catch-dream, trains and
stores those of the small world Rain as nbs/data/rain-dream, lets PPO practise in the dream of Catch
and play the real game, and writes nbs/results/dream-ppo.json; `--only worlds` stops after the two
agents. The second line times DreamEnv with the agent that is there already and writes its own entry
of that file. The code of the experiment is that of the chapter: its cells that name this file.
Needs the development requirements (stable-baselines3); about ten minutes on one CPU core.
"""
import argparse
import json
import shutil
import time
from datetime import date
from pathlib import Path

import torch

from simulus_nb.agent import Agent
from simulus_nb.config import flat
from simulus_nb.origin import git_commit, processor, versions
from simulus_nb.run_folder import RunFolder

NBS = Path(__file__).resolve().parents[1] / "nbs"
FILE = NBS / "results" / "dream-ppo.json"
STEPS = {"tokens": 20_480, "images": 40_960}                    # of PPO, all dreamt


def chapter() -> dict:
    "The definitions of the experiment, from the chapter's cells that name this file."
    cells = json.loads((NBS / "31_inside_the_dream.ipynb").read_text(encoding="utf8"))["cells"]
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


def circumstances(command: str) -> dict:
    "Where a measurement comes from."
    return dict(
        command=f"python tools/{Path(__file__).name} {command}", git_commit=git_commit(),
        versions=versions(), machine=processor(), date=str(date.today())
    )


def measure_speed(play: dict, agent: Agent, replay) -> dict:
    "An entry of the record by itself: a quiet machine can measure it again."
    return circumstances("--only speed") | {"found": play["speed"](agent, replay, 64, 100)}


def write(record: dict) -> None:
    text = json.dumps(record, separators=(",", ":")) + "\n"
    FILE.write_text(text, encoding="utf8")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("run", type=Path, nargs="?",
                   help="folder of the run that learnt from random play; only read")
    p.add_argument("--seeds", type=int, default=5, help="runs of PPO with each kind of observation")
    p.add_argument("--only", choices=("worlds", "speed"))
    a = p.parse_args()
    if a.run is None and a.only != "speed":
        p.error("name the folder of the run, or --only speed")
    torch.set_num_threads(1)
    play = chapter()
    if a.only != "speed":
        world = store_world(a.run)
        rain = store(play["train_rain"](seed=0), "rain-dream")
        print("bytes:", world["bytes"], rain, flush=True)
    if a.only == "worlds":
        return
    agent, runs = Agent.load(NBS / "data" / "catch-dream"), []
    replay = play["random_play"](agent, play["Catch"], 1_200, seed=1)
    if a.only == "speed":
        return write(json.loads(FILE.read_text()) | {"speed": measure_speed(play, agent, replay)})
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
    write(circumstances(f"RUN --seeds {a.seeds}") | dict(
        world=world, random=dict(mean=chance.mean, sem=chance.sem),
        speed=measure_speed(play, agent, replay), runs=runs
    ))


if __name__ == "__main__":
    main()
