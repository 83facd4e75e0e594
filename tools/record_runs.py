"""Collect finished runs into one small JSON that a notebook can show.

    python tools/record_runs.py RUN [RUN ...] --out nbs/results/NAME.json [--machine TEXT] [--random-episodes N]

All runs must be of one environment and differ in nothing but the seed. The score of a random player, in the same evaluation environment, is measured and stored beside them.
"""
import argparse
import json
from datetime import date
from pathlib import Path

from simulus_nb.config import differences, flat
from simulus_nb.evaluate import RandomAgent, evaluate
from simulus_nb.trainer import RunFolder, env_maker, infer_specs

KEPT = ("epoch", "env_steps", "seconds/total", "env/return", "evaluation/return", "v/", "m/", "c/")


def run_record(folder: RunFolder) -> dict:
    "One run: seed, cost, returns of the final evaluation, and the curves."
    manifest, result = (json.loads(f.read_text()) for f in (folder.manifest, folder.evaluation))
    rounded = [{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in r.items() if k.startswith(KEPT)} for r in folder.history()]
    return dict(seed=manifest["seed"], env_steps=manifest["env_steps"], wall_seconds=manifest["wall_seconds"], returns=[float(f"{x:.6g}") for x in result["returns"]],
                lengths=result["lengths"], evaluations=[[r["env_steps"], r["evaluation/return"]] for r in rounded if "evaluation/return" in r], history=rounded)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--machine", default="")
    p.add_argument("--random-episodes", type=int, default=100)
    a = p.parse_args()
    folders = [RunFolder(r) for r in a.runs]
    configs = [f.read_config() for f in folders]
    for c in configs[1:]:
        if other := set(differences(configs[0], c)) - {"seed"}:
            raise SystemExit(f"the runs differ in more than the seed: {', '.join(sorted(other))}")
    manifest = json.loads(folders[0].manifest.read_text())
    seed = str(configs[0].seed)
    command = " ".join("SEED" if w == seed else w.replace(f"-{seed}", "-SEED") for w in manifest["command"].split())
    chance = evaluate(RandomAgent(*infer_specs(configs[0])), [env_maker(configs[0], training=False)] * 10, a.random_episodes, seed=0)
    out = dict(command=command, env=configs[0].env, machine=a.machine, date=str(date.today()), versions=manifest["versions"], python=manifest["python"],
               threads=manifest["threads"], git_commit=manifest["git_commit"], settings=flat(configs[0]) | {"seed": None},
               random=dict(mean=chance.mean, sem=chance.sem, returns=list(chance.returns)), runs=[run_record(f) for f in folders])
    a.out.write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf8")
    for r in out["runs"]:
        print(f"seed {r['seed']}: {sum(r['returns']) / len(r['returns']):.3f} after {r['env_steps']} steps, {r['wall_seconds'] / 60:.1f} min (random {chance.mean:.3f})")


if __name__ == "__main__":
    main()
