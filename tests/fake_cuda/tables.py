"""The first minutes on a GPU, `tools/gpu_tables.py`, at toy size on a CUDA that computes nothing:
three epochs, one by one and as graphs, and two variants of the bench.
`python tests/fake_cuda/tables.py` prints what broke a rule as one JSON object."""
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import fake                             # before torch
from worlds import without_numbers

TOOL = Path(__file__).parents[2] / "tools" / "gpu_tables.py"


def load_tool():
    "The script as a module; its dataclasses look themselves up among the modules."
    spec = importlib.util.spec_from_file_location("gpu_tables", TOOL)
    tool = sys.modules["gpu_tables"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def main() -> None:
    warnings.simplefilter("ignore")
    tool, kept = load_tool(), []
    with fake.fake_cuda() as device:
        without_numbers()
        runs = [tool.three_epochs("cuda", True, kept.append, graphs) for graphs in (False, True)]
        benches = [tool.bench_variant("cuda", True, kept.append, changes)
                   for changes in ({"precision": "float32"},
                                   {"precision": "bfloat16", "graphs": True})]
    broken = [f"{where}: {rule}" for rule, where in device.broken]
    stages = [sorted({key.split("/")[0] for record in run["history"] for key in record})
              for run in runs]
    print(json.dumps({"broken": broken, "recordings": device.recorded, "stages": stages,
                      "epochs": [len(run["history"]) for run in runs],
                      "timed": [sorted(bench["seconds"]) for bench in benches],
                      "kept": len(kept)}))


if __name__ == "__main__":
    main()
