"""What the model-free opponents need in a world for which nobody has published their settings.

    python tools/opponents.py --out nbs/data/opponents.json

DQN, DQN with our number of updates, and PPO play the task `catch` of chapter 35 on other seeds than
those of its table, once with the defaults of Stable-Baselines3 (but the target network of DQN is
copied a hundred times in a match) and once with `ELSEWHERE` of chapter 33."""
import argparse
import json
from datetime import date
from pathlib import Path
from unittest import mock

from simulus_nb import model_free
from simulus_nb.origin import git_commit, processor, versions
from simulus_nb.run_setup import makers_of, prepare
from simulus_nb.tasks import SEEDS, TASKS, make_row

PLAYERS = ("dqn", "dqn-more", "ppo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("nbs/data/opponents.json"))
    options = parser.parse_args()
    if set(options.seeds) & set(SEEDS):
        parser.error(f"the seeds {SEEDS} are those of the table")
    found = []
    for kind in ("defaults", "chosen"):
        with mock.patch.dict(model_free.ELSEWHERE, clear=kind == "defaults"):
            for player in PLAYERS:
                rows = [make_row("catch", player, s, makers_of, prepare) for s in options.seeds]
                found.append({
                    "player": player, "settings": kind,
                    "returns": [round(r.result.mean, 3) for r in rows],
                    "cpu_seconds": [r.cpu_seconds for r in rows]})
                print(found[-1], flush=True)
    stored = {
        "command": f"python tools/opponents.py --seeds {' '.join(map(str, options.seeds))}",
        "steps": TASKS["catch"].steps, "seeds": options.seeds, "rows": found,
        "date": str(date.today()), "machine": processor(), "git_commit": git_commit(),
        "versions": versions()}
    options.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
