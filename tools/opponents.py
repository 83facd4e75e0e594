"""Which settings the model-free opponents need where budgets are small.

    python tools/opponents.py --tasks catch --out nbs/data/opponents.json

DQN, DQN with our number of updates, and PPO play tasks of chapter 35 on other seeds than those of
its tables: once with what is published for the world, or else the defaults of Stable-Baselines3
(but the target network of DQN is copied a hundred times in a match), once with `ELSEWHERE` of
chapter 33, and where there are any with those of `OWN`. The file is written after each task; the
others that are there stay."""
import argparse
import json
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from unittest import mock

from simulus_nb import model_free
from simulus_nb.baselines import LEARN
from simulus_nb.origin import git_commit, processor, versions
from simulus_nb.run_setup import makers_of, prepare
from simulus_nb.tasks import TASKS, make_row
from trials import check_seeds

PLAYERS = {"catch": ("dqn", "dqn-more", "ppo")}
USUAL = ("dqn", "ppo")                          # of the other tasks


def rows_of(task: str, kind: str, seeds: list[int]) -> list[dict]:
    "What the players of a task reach with settings of one kind: usual, ours, or own."
    without = {"usual": [model_free.OWN, model_free.ELSEWHERE, model_free.SHORT],
               "ours": [model_free.OWN, *model_free.PUBLISHED.values()], "own": []}[kind]
    own = lambda player: any(TASKS[task].env.startswith(start)
                             for start in model_free.OWN.get(LEARN[player][0], {}))
    found = []
    with ExitStack() as stack:
        for one in without:
            stack.enter_context(mock.patch.dict(one, clear=True))
        for player in PLAYERS.get(task, USUAL):
            if kind == "own" and not own(player):
                continue
            rows = [make_row(task, player, s, makers_of, prepare) for s in seeds]
            found.append({
                "player": player, "settings": kind, "source": rows[0].settings["source"],
                "returns": [round(r.result.mean, 3) for r in rows],
                "cpu_seconds": [r.cpu_seconds for r in rows]})
            print(task, found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS,
                        default=["catch", "cartpole", "acrobot", "minigrid-empty"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("nbs/data/opponents.json"))
    options = parser.parse_args()
    check_seeds(parser, options.seeds)
    for task in options.tasks:
        rows = [row for kind in ("usual", "ours", "own")
                for row in rows_of(task, kind, options.seeds)]
        seeds = " ".join(map(str, options.seeds))
        stored = json.loads(options.out.read_text()) if options.out.exists() else {}
        stored[task] = {
            "command": f"python tools/opponents.py --tasks {task} --seeds {seeds}",
            "env": TASKS[task].env, "steps": TASKS[task].steps, "seeds": options.seeds,
            "rows": rows,
            "date": str(date.today()), "machine": processor(), "git_commit": git_commit(),
            "versions": versions()}
        options.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
