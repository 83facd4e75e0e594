"""Why an agent that had learnt CartPole forgets it: runs with two critics, looked at on the way.

    python tools/forgetting.py --seeds 1 2 3 --out nbs/data/forgetting.json

Each run has the settings of the task `cartpole` (chapter 35) but a smaller budget. `histogram` is
C as it was: a critic whose values are a histogram, and the newest C plays. `number`: the critic is
one number. `mean`: and the C that plays is the mean of the C that learns, as the settings of the
task are. Every thousand steps the training stops and the run is looked at as `simulus-nb inspect`
does, by new episodes of the present policy. The file is written after each run; what is there
stays. Seeds of the table in chapter 35 are not for this."""
import argparse
from pathlib import Path

import torch

from simulus_nb import loop
from simulus_nb.config import Config
from simulus_nb.health import gather, look
from simulus_nb.run_setup import makers_of
from simulus_nb.tasks import TASKS
from trials import check_seeds, store

KINDS = {
    "histogram": {"controller.value": "histogram", "train_c.average": 1.0},
    "number": {"controller.value": "number", "train_c.average": 1.0},
    "mean": {},
}
READ = ("m/obs on replay", "m/obs on fresh play", "p(end) at ends", "dreamt return", "value",
        "value and return", "entropy")


def settings(kind: str, seed: int, steps: int) -> Config:
    "Those of the task, for fewer steps."
    task = TASKS["cartpole"]
    return task.config(seed, KINDS[kind]).for_steps(steps)


def run(config: Config, episodes: int, every: int) -> list[dict]:
    "Train, and look every so many steps: [{steps, return, readings}]."
    make, seen, rows = makers_of(config), [], []
    state = loop.new_state(config, make, torch.device("cpu"))

    def inspect(state: loop.RunState) -> dict:
        "What `simulus-nb inspect` says, where it is time and C has begun."
        due = (len(seen) + 1) * every <= state.env_steps
        if due and state.epoch > config.train_c.start:
            found = gather(state.agent, config, state.replay, rows, make, episodes, 500)
            said = {r.name: round(r.value, 4) for r in look(found) if r.name in READ}
            score = loop.judge(state, episodes).mean
            seen.append({"steps": state.env_steps, "return": round(score, 1), **said})
            print(config.seed, config.controller.value, seen[-1], flush=True)
        return {}

    while state.epoch < config.epochs:
        rows.append(loop.run_epoch(state, loop.STAGES | {"evaluation": inspect}))
    state.worlds.close()
    return seen


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    p.add_argument("--steps", type=int, default=6_300)
    p.add_argument("--every", type=int, default=1_000, help="steps between two looks")
    p.add_argument("--episodes", type=int, default=20, help="of each kind of play at a look")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    check_seeds(p, a.seeds)
    torch.set_num_threads(1)
    for seed in a.seeds:
        for kind in a.kinds:
            config = settings(kind, seed, a.steps)
            seen = run(config, a.episodes, a.every)
            command = (f"python tools/forgetting.py --seeds {seed} --kinds {kind} "
                       f"--steps {a.steps} --out {a.out}")
            store(a.out, kind, config, command, seen)


if __name__ == "__main__":
    main()
