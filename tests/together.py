"""A process that imports the library once and forks groups of children that train together over
gloo, as torchrun's workers do; the store where they meet lives here, as it does in torchrun. Tasks
come on stdin and results leave on stdout, one JSON object a line. The `world` children run a
command (`argv`), or twenty updates of V, M and C with a batch in common (`steps`). Process `kill`
ends itself with SIGKILL at its `at`-th update of M; process `signalled` is sent SIGTERM there."""
import json
import os
import signal
import sys
import traceback

import torch
from matplotlib.figure import Figure

from simulus_nb import cli, distributed, learner, trainer
from simulus_nb.config import preset
from simulus_nb.imagination import Dream, imagine
from simulus_nb.loop import collect, learn_c, learn_m, learn_v, tokenise
from simulus_nb.replay import Segment
from simulus_nb.run_setup import prepare

torch.set_num_threads(1)


def toy(**changes):
    "Catch with every part at its smallest; nothing random but play, batches and dreams."
    return preset("catch").change(
        {
            "epochs": 3, "threads": 1, "seed": 5, "device": "cpu", "collect.steps": 60,
            "collect.num_envs": 2, "collect.capacity": 400, "tokenizer.image.code_dim": 8,
            "tokenizer.image.vocab": 16, "world_model.retnet.width": 16,
            "world_model.retnet.layers": 1, "controller.width": 16, "controller.channels": [4, 4],
            "train_v.batch": 8, "train_m.batch": 8, "train_m.segment": 7, "train_c.batch": 8,
            "train_c.horizon": 6, "train_c.scale_window": 5, "evaluation.episodes": 3,
            "evaluation.num_envs": 2, "evaluation.every": 0, **changes
        }
    )


def as_two(world_model, controller, context, horizon, generator, *rest):
    "The dream of one process with the noise of two."
    seed, parts = int(torch.randint(2**62, ())), []
    for rank in range(2):
        part = Segment(**{k: x.chunk(2)[rank] for k, x in vars(context).items()})
        parts.append(
            imagine(
                world_model, controller, part, horizon,
                torch.Generator().manual_seed(seed ^ rank ^ 2**31), *rest
            )
        )
    join = lambda xs: (
        tuple(torch.cat(x, -2) for x in zip(*xs)) if isinstance(xs[0], tuple) else torch.cat(xs)
    )
    return Dream(**{k: join([vars(p)[k] for p in parts]) for k in vars(parts[0])})


def steps(task):
    "Twenty updates of each part; saves everything that they left, and the metrics."
    torch.set_default_dtype(torch.float64 if task.get("double") else torch.float32)
    run = prepare(toy(**task.get("changes", {})))
    if distributed.processes() == 1:
        learner.imagine = as_two
    found = {"play": collect(run)}
    if "v" in run.learner.optimizers:
        found["v"] = learn_v(run, 20)
    tokenise(run)
    found["m"] = learn_m(run, 20)
    run.epoch = 10_000
    found["m later"] = learn_m(run, 2)
    torch.manual_seed(1)
    found["c"] = learn_c(run, 20)
    state = {
        f"{name}.{k}": x
        for name, part in (("agent", run.agent), ("scale", run.learner.scale),
                           ("learns", run.learner.controller))
        for k, x in part.state_dict().items()
    }
    state |= {f"replay.{k}": x for k, x in run.replay.tensors().items()}
    if run.priorities is not None:
        state["priorities"] = run.priorities.losses()
        assert (state["priorities"] < 10).any()
    moments = {
        f"optimizer.{name}.{i}.{k}": x
        for name, o in run.learner.optimizers.items()
        for i, slots in o.state_dict()["state"].items()
        for k, x in slots.items()
    }
    random = {"generator": run.generator.get_state(), "torch": torch.get_rng_state()}
    torch.save(
        {"metrics": found, "state": state | moments, "random": random},
        f"{task['out']}-{distributed.rank()}"
    )
    distributed.leave()
    return 0


def disturbed(task, rank):
    "Let this process die, or be asked to stop, at an update of M."
    step, seen = learner.Learner.m_step, [0]

    def m_step(self, segment, *rest):
        seen[0] += 1
        if seen[0] == task["at"]:
            os.kill(os.getpid(), signal.SIGKILL if rank == task.get("kill") else signal.SIGTERM)
        return step(self, segment, *rest)

    if rank in (task.get("kill"), task.get("signalled")):
        learner.Learner.m_step = m_step


def child(task, rank, port):
    "What a forked process does; returns its exit code."
    log = os.open(f"{task['log']}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    if task["world"] > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(task["world"]),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True"
        }
    trainer.dream_media = lambda *args, **kwargs: {}  # pictures and videos take longer than the run
    trainer.plot_history = lambda history: Figure(figsize=(1, 1))
    disturbed(task, rank)
    return cli.main(task["argv"]) if "argv" in task else steps(task)


def run(task):
    "Fork the children and wait for them; their exit codes, and what they said."
    store, pids = (
        torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []
    )
    for rank in range(task["world"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 99
            try:
                code = child(task, rank, store.port)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {
        "codes": codes,
        "said": [open(f"{task['log']}-{rank}").read() for rank in range(task["world"])]
    }


if __name__ == "__main__":
    cli.parse(["train"])
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
