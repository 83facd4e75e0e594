"""Trials that a chapter shows: one file of them, and no seed of a table."""
import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from simulus_nb.config import Config
from simulus_nb.run_folder import circumstances
from simulus_nb.tasks import TASKS


def check_seeds(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    "Seeds of the tables of chapter 35 are not for choosing anything."
    if kept := {*seeds} & {seed for task in TASKS.values() for seed in task.seeds}:
        parser.error(f"seeds {sorted(kept)} are those of tables of chapter 35: take others")


def store(out: Path, kind: str, config: Config, command: str, points: list[dict]) -> None:
    "Add a trial, or put it in the place of the same one; what else is there stays."
    found = json.loads(out.read_text()) if out.exists() else {}
    facts = circumstances(config, torch.device("cpu"), command)
    found[f"{kind}-{config.seed}"] = {
        "kind": kind, "date": date.today().isoformat(), **facts, "points": points}
    rows = [f"{json.dumps(k)}: {json.dumps(found[k])}" for k in sorted(found)]
    out.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf8")
