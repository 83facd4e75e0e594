"""Train in the three rooms with curiosity and without, the same seeds, and write what came of it.

    python tools/curiosity.py --seeds 10 11 12 13 14 --out nbs/results/rooms.json
    python tools/curiosity.py --seeds 0 --kinds curious --weight 30 --out try.json --runs runs/try

One run folder each, `<runs>/<kind>-<seed>`; what is there is finished or gone on with. A seed is
solved if the final evaluation, 100 episodes, reaches the goal in 9 of 10. The file is written after
each run, and rows of other runs that stand there stay. Each row has its kind and seed, score,
environment steps, first epoch with a reward, settings that differ from those of the library,
command, commit, versions, machine, date."""
import argparse
import json
from datetime import date
from pathlib import Path

from simulus_nb.config import Config, differences, preset
from simulus_nb.run_folder import circumstances
from simulus_nb.trainer import Trainer

ROOMS = {                               # what both kinds have in common
    "env": "simulus/Rooms-v0", "threads": 1, "device": "cpu", "epochs": 80, "collect.steps": 180,
    "world_model.retnet.width": 48, "controller.width": 64, "train_m.batch": 16,
    "train_m.segment": 12, "train_m.steps": 40, "train_m.start": 3, "train_c.batch": 32,
    "train_c.steps": 25, "train_c.start": 4, "train_c.burn_in": 4, "train_c.context": 2,
    "train_c.horizon": 11, "train_c.lr": 1e-3, "train_c.loss.gamma": 0.97, "evaluation.every": 0,
}
CURIOUS, PRIORITISED = ({"curiosity.heads": 4, "curiosity.weight": 10.0},
                        {"train_m.prioritised": 0.3})
KINDS = {"core": {}, "curious": CURIOUS, "prioritised": PRIORITISED, "both": CURIOUS | PRIORITISED}
SOLVED = 0.9


def settings(kind: str, seed: int, epochs: int | None, weight: float | None) -> Config:
    "Those of a run."
    more = {"epochs": epochs} if epochs else {}
    if weight is not None and "curiosity.weight" in KINDS[kind]:
        more["curiosity.weight"] = weight
    return preset("small").change(ROOMS | KINDS[kind] | more | {"seed": seed})


def row(kind: str, seed: int, trainer: Trainer, out: Path) -> dict:
    "What came of a run."
    history, config = trainer.folder.history(), trainer.config
    paid = [r["epoch"] for r in history if r.get("env/return", 0) > 0]
    score = trainer.result.mean
    command = (f"python tools/curiosity.py --seeds {seed} --kinds {kind} --epochs {config.epochs} "
               f"--out {out}")
    if "curiosity.weight" in KINDS[kind]:
        command += f" --weight {config.curiosity.weight:g}"
    return {"kind": kind, "seed": seed, "score": score, "solved": score >= SOLVED,
            "env_steps": trainer.env_steps, "first_reward": paid[0] if paid else None,
            "rewarded_epochs": len(paid), "seconds": round(trainer.seconds),
            "date": date.today().isoformat(), **circumstances(config, trainer.device, command),
            "settings": {name: now for name, (now, _) in differences(config, Config()).items()}}


def kept(out: Path) -> dict[str, dict]:
    "The rows of a file by kind and seed."
    rows = json.loads(out.read_text(encoding="utf8"))["rows"] if out.exists() else []
    return {f"{r['kind']}-{r['seed']}": r for r in rows}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    p.add_argument("--epochs", type=int, help="epochs of each run (80)")
    p.add_argument("--weight", type=float, help="of the disagreement, in the place of 10")
    p.add_argument("--runs", type=Path, default=Path("runs/rooms"), help="where run folders go")
    p.add_argument("--out", type=Path, required=True, help="JSON file, written after each run")
    a = p.parse_args()
    for seed in a.seeds:
        for kind in a.kinds:
            config = settings(kind, seed, a.epochs, a.weight)
            folder = a.runs / f"{kind}-{seed}"
            trainer = Trainer(config, folder, resume=True).train()
            new = row(kind, seed, trainer, a.out)
            rows = kept(a.out) | {f"{kind}-{seed}": new}
            lines = ",\n".join(json.dumps(rows[name]) for name in sorted(rows))
            a.out.write_text('{"rows": [\n' + lines + "\n]}\n", encoding="utf8")
            print(f"{kind} {seed}: {new['score']:.2f}", flush=True)


if __name__ == "__main__":
    main()
