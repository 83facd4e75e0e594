"""When M learns what the world Memory asks for: five ways to set it up, looked at on the way.

    python tools/remembering.py --seeds 1 2 3 --out nbs/data/remembering.json

Each run has the settings of the task `memory` (chapter 35), but C never learns. `slow` is the M of
the task: attention with four heads a layer that fade slowly, and a weight on the reward's loss.
`both` has two heads a layer, of which one is slow; `fading` lacks the weight too, `weighted` the
fading, `attention` both. After every epoch of updates M is asked what each answer
would earn in episodes that it has never seen. Counted is how often the better of the two answers
that are not struck out comes first: without memory every second time. The file is written after
each run; what is there stays. Seeds of the tables in chapter 35 are not for this."""
import argparse
from pathlib import Path

import numpy as np
import torch

from simulus_nb import loop
from simulus_nb.config import Config
from simulus_nb.memory import Memory
from simulus_nb.run_setup import makers_of
from simulus_nb.tasks import TASKS
from simulus_nb.world_model import WorldModel
from trials import check_seeds, store

ONE_SLOW = {"world_model.retnet.heads": 2, "world_model.retnet.windows": (2.0, 64.0)}
KINDS = {
    "attention": {**ONE_SLOW, "world_model.attention.fade": False, "train_m.reward_weight": 1.0},
    "fading": {**ONE_SLOW, "train_m.reward_weight": 1.0},
    "weighted": {**ONE_SLOW, "world_model.attention.fade": False},
    "both": ONE_SLOW,
    "slow": {},
}
Asked = list[tuple[list[int], list[int], int]]          # what was shown, what was done, the signal


def settings(kind: str, seed: int, updates: int) -> Config:
    "Those of the task; M makes about so many updates, C none."
    config = TASKS["memory"].config(seed, KINDS[kind] | {"train_c.start": 10**6})
    alone = -(-updates // config.train_m.steps) - 1     # the first come with the last new steps
    return config.change({"epochs": config.collecting + alone, "learn_on": alone,
                          "evaluation.every": 0})


def questions(config: Config, n: int) -> Asked:
    "Random play up to the question, in worlds of their own."
    rng, found = np.random.default_rng(config.seed + 777), []
    for i in range(n):
        world = Memory(**config.env_options)
        shown, acts = [world.reset(seed=1_000_000 * (config.seed + 1) + i)[0]], []
        while shown[-1] <= 2 * world.signals:
            acts.append(int(rng.integers(world.signals)))
            shown.append(world.step(acts[-1])[0])
        found.append((shown, acts, world.signal))
    return found


@torch.no_grad()
def right(m: WorldModel, asked: Asked, signals: int = 3) -> float:
    "Share of questions in which M expects most from the right one of the open answers."
    was, good = m.training, 0
    m.eval()
    for n in {len(shown) for shown, _, _ in asked}:
        some = [one for one in asked if len(one[0]) == n]
        z = torch.tensor([shown for shown, _, _ in some])[..., None]
        said = []
        for a in range(signals):
            action = torch.tensor([[*acts, a] for _, acts, _ in some])[..., None]
            value = m.reward.decode(m(z, action, first=n, keep=False)[0].reward)[:, 0]
            said.append(value.masked_fill(z[:, -1, 0] == 2 * signals + 1 + a, -torch.inf))
        best = torch.stack(said).argmax(0)
        good += (best == torch.tensor([signal for _, _, signal in some])).sum().item()
    m.train(was)
    return good / len(asked)


def run(config: Config, episodes: int) -> list[dict]:
    "Collect, then learn; after every epoch of updates [{updates, right, reward}]."
    state = loop.new_state(config, makers_of(config), torch.device("cpu"))
    asked, points, first = questions(config, episodes), [], config.train_m.start
    while state.epoch < config.epochs:
        said = loop.run_epoch(state)
        if state.epoch > first:
            share = right(state.agent.world_model, asked)
            points.append({"updates": (state.epoch - first) * config.train_m.steps,
                           "right": round(share, 3), "reward": round(said["m/reward"], 4)})
            print(config.seed, config.world_model.sequence, points[-1], flush=True)
    state.worlds.close()
    return points


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    p.add_argument("--updates", type=int, default=1_200)
    p.add_argument("--episodes", type=int, default=200, help="questions at each look")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    check_seeds(p, a.seeds)
    torch.set_num_threads(1)
    for seed in a.seeds:
        for kind in a.kinds:
            config = settings(kind, seed, a.updates)
            points = run(config, a.episodes)
            command = (f"python tools/remembering.py --seeds {seed} --kinds {kind} "
                       f"--updates {a.updates} --out {a.out}")
            store(a.out, kind, config, command, points)


if __name__ == "__main__":
    main()
