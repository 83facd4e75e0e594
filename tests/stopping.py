"Two epochs of a run, left alone or stopped in the middle and gone on."
import torch

from simulus_nb.loop import RunState, run_epoch
from simulus_nb.resume import load_state, save_state
from simulus_nb.run_setup import prepare


class Enough(Exception):
    pass


def two_epochs(config, stage=None, folder=None) -> tuple[RunState, dict]:
    """The state after two epochs and the record of the second; with a `stage` the run is saved in
    `folder` after the first update of that stage in the second, and goes on in a new one."""
    s = prepare(config)
    run_epoch(s)
    if stage:
        def pause():
            if s.cursor.stage == stage and len(s.cursor.values) == 1:
                raise Enough
        s.pause = pause
        try:
            run_epoch(s)
            raise AssertionError(f"no update of {stage} came")
        except Enough:
            save_state(s, folder)
        s.worlds.close()
        torch.rand(5)                                       # other random numbers than before
        s = prepare(config)
        load_state(s, folder)
        assert s.cursor.stage == stage
    record = run_epoch(s)
    s.worlds.close()
    return s, {k: v for k, v in record.items() if "seconds" not in k}
