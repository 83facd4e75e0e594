"""Collect finished runs into one small JSON that a notebook can show; its fields are described in
the chapter on comparing agents.

    python tools/record_runs.py RUN [RUN ...] --out nbs/results/NAME.json [--machine TEXT] \\
        [--preset NAME] [--deviation TEXT ...] [--random-episodes N]

All runs must be of one environment and differ in nothing but the seed. What departs from the preset
is found out and written down, in settings; say with --deviation what else did. The score of a
random player, in the same evaluation environment, is measured and stored beside them. Runs on a GPU
belong in nbs/results/gpu/NAME-DATE.json. A run that was stopped early is recorded once it is
finished there: simulus-nb train --resume --epochs N --out RUN.
"""
import argparse
import json
from datetime import date
from pathlib import Path

from simulus_nb.config import Config, differences, flat, preset, preset_for
from simulus_nb.evaluate import RandomAgent, evaluate
from simulus_nb.records import TRAINING_RUN, read_record
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_setup import env_maker, infer_specs
from simulus_nb.spaces import UserError

KEPT = ("epoch", "env_steps", "seconds/total", "env/return", "evaluation/return", "v/", "m/", "c/")
# of runs with more than 100 epochs
LONG = (
    "epoch", "env_steps", "seconds/total", "env/return", "evaluation/return", "v/pixel", "m/obs",
    "c/critic", "c/entropy"
)
# these do not change what is learnt
HARMLESS = {
    "seed", "env", "device", "threads", "save_every", "evaluation.every", "evaluation.interim",
    "evaluation.num_envs"
}


def run_record(folder: RunFolder) -> dict:
    "One run: seed, cost, returns of the final evaluation, and the curves."
    for file in (folder.manifest, folder.evaluation):
        if not file.exists():
            raise UserError(
                f"{folder.path} has no {file.name}: finish the run with simulus-nb train --resume "
                f"--out {folder.path}, and --epochs N to end it early"
            )
    manifest, result, history = (
        json.loads(folder.manifest.read_text()), json.loads(folder.evaluation.read_text()),
        folder.history()
    )
    kept = KEPT if len(history) <= 100 else LONG
    rounded = [
        {
            k: float(f"{v:.5g}") if isinstance(v, float) else v
            for k, v in r.items()
            if k.startswith(kept)
        }
        for r in history
    ]
    return dict(
        seed=manifest["seed"],
        env_steps=manifest["env_steps"],
        wall_seconds=manifest["wall_seconds"],
        peak_bytes=manifest.get("peak_bytes"),
        returns=[float(f"{x:.6g}") for x in result["returns"]],
        lengths=result["lengths"],
        evaluations=[
            [r["env_steps"], r["evaluation/return"]] for r in rounded if "evaluation/return" in r
        ],
        history=rounded,
    )


def deviations(config: Config, name: str) -> list[str]:
    "Settings that depart from a preset, where they could change the result."
    return [
        f"{field} = {mine} ({name}: {theirs})"
        for field, (theirs, mine) in differences(preset(name), config).items()
        if field not in HARMLESS
    ]


def record(
    runs: list[Path], machine: str = "", against: str | None = None, also: list[str] = (),
    random_episodes: int = 100
) -> dict:
    "What is stored of some finished runs."
    folders = [RunFolder(r) for r in runs]
    configs = [f.read_config() for f in folders]
    found = [run_record(f) for f in folders]
    for c in configs[1:]:
        if other := set(differences(configs[0], c)) - {"seed"}:
            raise UserError(f"the runs differ in more than the seed: {', '.join(sorted(other))}")
    manifest, against = (
        json.loads(folders[0].manifest.read_text()), against or preset_for(configs[0].env)
    )
    seed = str(configs[0].seed)
    command = " ".join(
        "SEED" if w == seed else w.replace(f"-{seed}", "-SEED") for w in manifest["command"].split()
    )
    chance = random_episodes and evaluate(
        RandomAgent(*infer_specs(configs[0])), [env_maker(configs[0], training=False)] * 10,
        random_episodes, seed=0
    )
    return dict(
        what=TRAINING_RUN,
        command=command,
        env=configs[0].env,
        preset=against,
        deviations=[*deviations(configs[0], against), *also],
        machine=machine,
        gpu=manifest["gpu"],
        date=str(date.today()),
        versions=manifest["versions"],
        python=manifest["python"],
        threads=manifest["threads"],
        git_commit=manifest["git_commit"],
        settings=flat(configs[0]) | {"seed": None},
        random=dict(mean=chance.mean, sem=chance.sem, returns=list(chance.returns))
        if chance
        else None,
        runs=found,
    )


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("runs", nargs="+", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--machine", default="", help="the processor, in words")
    p.add_argument(
        "--preset",
        help="published settings to hold the runs against (default: "
             "the preset made for the environment)"
    )
    p.add_argument(
        "--deviation", action="append", default=[],
        help="something that was different and is no setting"
    )
    p.add_argument(
        "--random-episodes", type=int, default=100, help="episodes of the random player (0: none)"
    )
    a = p.parse_args(argv)
    try:
        out = record(a.runs, a.machine, a.preset, a.deviation, a.random_episodes)
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf8")
        read_record(a.out)                                  # what was written can be read
    except UserError as e:
        raise SystemExit(str(e)) from None
    for r in out["runs"]:
        chance = f" (random {out['random']['mean']:.3f})" if out["random"] else ""
        print(
            f"seed {r['seed']}: {sum(r['returns']) / len(r['returns']):.3f} after {r['env_steps']} "
            f"steps, {r['wall_seconds'] / 60:.1f} min{chance}"
        )


if __name__ == "__main__":
    main()
