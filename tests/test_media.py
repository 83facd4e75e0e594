"""Pictures and films of whatever worlds show and renderers return, and that none of it can fail a
run or an evaluation."""
import errno
import os
import shutil
import stat
import tracemalloc
import warnings

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simulus_nb import film
from simulus_nb.cli import main
from simulus_nb.config import preset
from simulus_nb.evaluate import Notice, RandomAgent
from simulus_nb.film import MOST, Film, error_figure, error_picture, film_strip, picture, whole
from simulus_nb.open_loop import OpenLoop
from simulus_nb.recorder import film_episode
from simulus_nb.run_folder import RunFolder
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.trainer import Trainer

torch.set_num_threads(1)
few = settings(deadline=None, max_examples=15)


# whatever a world shows

def modality(kind, draw):
    side, long = st.sampled_from([1, 2, 3, 31, 300]), st.sampled_from([1, 2, 3, 7, 17, 128, 3000])
    if kind == "image":
        return dict(shape=(draw(side), draw(side), draw(st.integers(1, 6))))
    if kind == "vector":
        return dict(shape=(draw(long),))
    size = draw(st.sampled_from([1, 2, 9, 10**6]))
    if kind == "categorical":
        n = draw(long)
        return dict(
            shape=(n,), nvec=(size,) * n, start=(draw(st.sampled_from([0, -(10**6), 5])),) * n
        )
    channels = draw(st.sampled_from([1, 2, 12]))
    return dict(shape=(draw(side), draw(side), channels), nvec=(size,) * channels)


@st.composite
def dreams(draw):
    """An open loop of random observations, T = 3 steps of which `rows` belong to the episode, and
    the real ones."""
    kinds = draw(
        st.lists(
            st.sampled_from(["image", "vector", "categorical", "grid"]), min_size=1, max_size=3
        )
    )
    parts = tuple(Modality(f"key{i}", kind, **modality(kind, draw)) for i, kind in enumerate(kinds))
    rng, rows = np.random.default_rng(draw(st.integers(0, 99))), draw(st.integers(0, 3))
    def sample(m):
        size = (1, 3, *m.shape)
        if m.kind == "vector":
            return torch.from_numpy(
                rng.normal(0, 10.0 ** rng.integers(0, 30), size).astype(np.float32)
            )
        return torch.from_numpy(
            rng.integers(0, 256 if m.kind == "image" else m.nvec[0], size).astype(
                np.uint8 if m.kind == "image" else np.int64
            )
        )
    real, *obs = ({m.key: sample(m) for m in parts} for _ in range(4))
    none, mask = torch.zeros(1, 3, 1).long(), torch.arange(3)[None] < rows
    loop = OpenLoop(
        ObsSpec(parts), 1, mask, none, none, none, *[torch.zeros(1, 2)] * 6,
        dict(zip(("real", "dream", "forced"), obs))
    )
    return loop, real


@few
@given(dreams())
def test_every_observation_has_pictures_a_strip_and_a_frame(case):
    loop, real = case
    for m in loop.spec.modalities:
        x, y = real[m.key][0, 0].numpy(), loop.obs["dream"][m.key][0, 0].numpy()
        for drawn in (picture(m, x, y, 96), error_picture(m, x, y, 96)):
            assert (
                drawn.dtype == np.uint8
                and drawn.ndim == 3
                and drawn.shape[2] == 3
                and 1 <= min(drawn.shape)
                and max(drawn.shape) <= 2 * 2 * 96
            )
    frames = [film._video_frame(loop, real, 0, t, "dream 1 of 1") for t in range(3)]
    assert {f.shape for f in frames} == {frames[0].shape} and frames[0].shape[0] % 16 == frames[
        0
    ].shape[1] % 16 == 0
    assert len(film_strip(loop, real).axes) == max(1, int(loop.mask.sum())) * sum(
        3 + (m.kind in ("image", "vector")) for m in loop.spec.modalities
    )
    assert len(error_figure(loop, real).axes) == len(loop.spec.modalities)


def test_an_observation_of_hundreds_of_parts_is_drawn_in_part(tmp_path):
    parts = tuple(Modality(f"key{i}", "categorical", (2,), (3, 3)) for i in range(200))
    obs = {m.key: torch.zeros(1, 2, 2).long() for m in parts}
    none, half = torch.zeros(1, 2, 1).long(), torch.zeros(1, 1)
    loop = OpenLoop(
        ObsSpec(parts), 1, torch.ones(1, 2).bool(), none, none, none, *[half] * 6,
        dict.fromkeys(("real", "dream", "forced"), obs)
    )
    film_strip(loop, obs).savefig(tmp_path / "a.png", dpi=30)
    error_figure(loop, obs).savefig(tmp_path / "b.png", dpi=30)
    assert (
        len(error_figure(loop, obs).axes) == MOST
        and len(film_strip(loop, obs).axes) == 2 * 3 * MOST
    )


# ffmpeg

def script(folder, text):
    path = folder / "ffmpeg.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name != "posix", reason="scripts for a POSIX shell")
@pytest.mark.parametrize(
    "text, words",
    [
        ("exit 3", "exit code 3"), ("echo first >&2; echo last words >&2; exit 1", "last words"),
        ("sleep 60", "hung"), ("exec sleep 60 <&-", "hung"), ("cat >/dev/null; sleep 60", "hung"),
        ("head -c 1000 >/dev/null; kill -9 $$", "exit code -9"), (None, "did not start")
    ],
)
@pytest.mark.parametrize("frames", [1, 30])
def test_whatever_ffmpeg_does_is_one_line(tmp_path, monkeypatch, text, words, frames):
    monkeypatch.setattr("simulus_nb.film.WAIT", 0.5)
    monkeypatch.setenv(
        "IMAGEIO_FFMPEG_EXE", script(tmp_path, text) if text else str(tmp_path / "nowhere")
    )
    with pytest.raises(UserError, match=f"ffmpeg .*{words}") as e:
        with Film(tmp_path / "a.mp4", 5) as film:
            for _ in range(frames):
                film.add(np.zeros((100, 100, 3), np.uint8))
    assert "\n" not in str(e.value)


def test_a_film_that_is_given_up_leaves_no_process_and_no_file(tmp_path):
    def half(path):
        with Film(path, 5) as film:
            film.add(np.zeros((20, 20, 3), np.uint8))
            processes.append(film.ffmpeg.process)
            raise KeyError("the renderer")
    processes = []
    with pytest.raises(KeyError):
        whole(tmp_path / "media" / "a.mp4", half)
    assert processes[0].poll() is not None and not list((tmp_path / "media").iterdir())


def test_a_whole_file_replaces_a_link_and_does_not_follow_it(tmp_path):
    (tmp_path / "letter").write_text("mine")
    os.symlink(tmp_path / "letter", tmp_path / "a.png")
    whole(tmp_path / "a.png", lambda path: path.write_text("picture"))
    assert (tmp_path / "letter").read_text() == "mine" and not (tmp_path / "a.png").is_symlink()
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "letter").stat().st_mode
    )


# renderers

class World(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = gs.Box(-1, 1, (3,), np.float32), gs.Discrete(2)
    opened = 0
    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        type(self).opened += 1
    def close(self):
        type(self).opened -= 1
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(3, np.float32), {}
    def step(self, action):
        self.t += 1
        return self.np_random.random(3, np.float32), float(action), self.t >= 4, False, {}
    def render(self):
        return np.full((40, 48, 3), 200, np.uint8)


def register(cls):
    name = f"simulus-test/{cls.__name__}-v0"
    gymnasium.register(name, entry_point=cls, disable_env_checker=True)
    return name


def draws(render):
    return {"render": render if callable(render) else lambda self: render}


def meta(**values):
    return {"metadata": {**World.metadata, **values}}


def fails(self):
    raise OSError(errno.EPIPE, "the display\nhas gone")


def exits(self):
    raise SystemExit(3)


grey = np.full((40, 48), 200, np.uint8)
RENDERERS = {
    **{
        f"fps {x}": (meta(render_fps=x), "film")
        for x in (None, 0, -5, 10**9, "fast", float("nan"), float("inf"), 0.1, np.float32(12), [3])
    },
    "modes None": (meta(render_modes=None), "draws nothing"),
    "modes none": ({"metadata": {}}, "draws nothing"),
    "modes number": (meta(render_modes=3), ""),
    "no metadata": ({"metadata": None}, ""),
    "modes tuple": (meta(render_modes=("human", "rgb_array")), "film"),
    "modes text": (meta(render_modes="rgb_array"), "film"),
    "None": (draws(None), "no picture but NoneType"),
    "text": (draws("a map"), "no picture but str"),
    "nothing": (draws([]), "no picture"),
    "number": (draws(3), "no picture"),
    "five channels": (draws(np.zeros((6, 4, 5))), "no picture"),
    "objects": (draws(np.full((4, 4, 3), None)), "no picture"),
    "empty": (draws(np.zeros((0, 4, 3))), "no picture"),
    "list": (draws(lambda self: [np.full((40, 48, 3), 200, np.uint8)] * (self.t + 1)), "film"),
    "PIL": (draws(Image.fromarray(grey)), "film"),
    "palette": (draws(Image.fromarray(grey).convert("P")), "film"),
    "channels first": (draws(np.full((3, 40, 48), 200, np.uint8)), "film"),
    "grey": (draws(grey), "film"),
    "one channel": (draws(grey[..., None]), "film"),
    "RGBA": (draws(np.full((40, 48, 4), 200, np.uint8)), "film"),
    "float": (draws(np.full((40, 48, 3), 200 / 255)), "film"),
    "float 255": (draws(np.full((40, 48, 3), 200.0)), "film"),
    "int64": (draws(np.full((40, 48, 3), 200)), "film"),
    "tensor": (draws(torch.full((40, 48, 3), 200)), "film"),
    "nested lists": (draws(np.full((40, 48, 3), 200).tolist()), "film"),
    "readonly view": (draws(np.broadcast_to(np.uint8(200), (40, 48, 3))), "film"),
    "NaN": (draws(np.full((40, 48, 3), np.nan)), "film"),
    "odd": (draws(np.full((401, 333, 3), 200, np.uint8)), "film"),
    "tiny": (draws(np.full((1, 1, 3), 200, np.uint8)), "film"),
    "long": (draws(np.full((2, 3000, 3), 200, np.uint8)), "film"),
    "giant": (draws(np.broadcast_to(np.uint8(200), (6000, 5000, 3))), "film"),
    "grows": (draws(lambda self: np.full((400 + 100 * self.t, 400, 3), 200, np.uint8)), "film"),
    "shrinks": (draws(lambda self: np.full((400, 400 - 90 * self.t, 3), 200, np.uint8)), "film"),
    "late None": (draws(lambda self: None if self.t == 3 else grey), "no picture"),
    "raises": (draws(fails), "display has gone"),
    "exits": (draws(exits), "SystemExit"),
    "no render_mode": ({"__init__": lambda self: None, "close": lambda self: None}, "render_mode"),
    "close fails": ({"close": fails}, "film"),
}


@pytest.mark.parametrize("name", RENDERERS)
def test_a_renderer_gives_a_film_or_a_reason(tmp_path, name):
    members, expected = RENDERERS[name]
    cls = type(f"R{list(RENDERERS).index(name)}", (World,), members)
    config = preset("small").change({"env": register(cls)})
    agent = RandomAgent(
        ObsSpec.from_space(World.observation_space), ActionSpec.from_space(World.action_space)
    )
    path = tmp_path / "media" / "episode.mp4"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # of gymnasium.make; that it could not be closed
        why = film_episode(agent, config, path, 1.0, seed=0)
    if expected == "film":
        frames = imageio.mimread(path, memtest=False)
        assert (
            why is None
            and len({f.shape for f in frames}) == 1
            and len(frames) == 5
            and max(frames[0].shape) <= 1282
        )
        if name != "NaN":
            assert abs(int(frames[0][0, 0, 0]) - 200) < 5
    else:
        assert expected in why and "\n" not in why
    assert [p.name for p in path.parent.iterdir()] == ["episode.mp4"] * (expected == "film")
    assert cls.opened == (1 if name == "close fails" else 0)
    del gymnasium.registry[config.env]


def test_render_mode_given_twice_and_memory(tmp_path):
    class Wide(World):
        def step(self, action):
            return *super().step(action)[:2], self.t >= 60, False, {}
        def render(self):
            return np.full((500, 500, 3), self.t, np.uint8)
    config = preset("small").change(
        {"env": register(Wide), "env_options": {"render_mode": "human"}}
    )
    agent = RandomAgent(
        ObsSpec.from_space(World.observation_space), ActionSpec.from_space(World.action_space)
    )
    tracemalloc.start()
    assert film_episode(agent, config, tmp_path / "a.mp4", 1.0, 0, max_steps=50) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 51 frames went through
    assert (
        len(imageio.mimread(tmp_path / "a.mp4", memtest=False)) == 51 and peak < 10 * 500 * 500 * 3
    )
    del gymnasium.registry[config.env]


# the end of a run

class Rows(World):
    observation_space = gs.Dict(
        {
            "a": gs.MultiDiscrete([3, 3, 3, 3, 3]), "b": gs.MultiBinary(3),
            "c": gs.Box(0, 255, (2,), np.uint8)
        }
    )
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), *super().step(action)[1:]


TINY = {
    "epochs": 1, "threads": 1, "device": "cpu", "save_every": 1, "collect.steps": 12,
    "collect.capacity": 60, "world_model.retnet.width": 16, "world_model.retnet.layers": 1,
    "controller.width": 16, "controller.channels": [4, 4], "train_m.batch": 2, "train_m.steps": 1,
    "train_m.start": 0, "train_c.batch": 2, "train_c.steps": 1, "train_c.start": 0,
    "evaluation.episodes": 3, "evaluation.num_envs": 2, "evaluation.every": 0,
    "evaluation.max_steps": 20
}


@pytest.fixture(scope="module")
def almost(tmp_path_factory):
    "A run that has only to be finished."
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer = Trainer(
        preset("small").change({**TINY, "env": register(Rows)}), folder, progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)             # several categories in a row are drawn
        trainer.train()
    assert {p.name for p in (folder / "media").iterdir()} == {
        "curves.png", "dream.png", "dream.mp4", "dream-error.png"
    }
    (folder / "manifest.json").unlink()
    return folder


def no_font(name):
    raise ValueError("Failed to find font DejaVu Sans")


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def pipe(*args, **kwargs):
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def memory(*args, **kwargs):
    raise MemoryError


BROKEN = {  # what breaks: (how, media that are left)
    "ffmpeg": (
        lambda m, media: m.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false"),
        {"curves.png", "dream.png", "dream-error.png"}
    ),
    "font": (
        lambda m, media: m.setattr(film, "findfont", no_font), {"curves.png", "dream-error.png"}
    ),
    "disk": (lambda m, media: m.setattr("matplotlib.figure.Figure.savefig", full), {"dream.mp4"}),
    "pipe": (lambda m, media: m.setattr("simulus_nb.trainer.dream_media", pipe), {"curves.png"}),
    "memory": (lambda m, media: m.setattr("simulus_nb.film.open_loop", memory), {"curves.png"}),
    "curves": (
        lambda m, media: m.setattr("simulus_nb.trainer.plot_history", memory),
        {"dream.png", "dream.mp4", "dream-error.png"}
    ),
    "replaced": (
        lambda m, media: (media / "curves.png").mkdir(),
        {"dream.png", "dream.mp4", "dream-error.png", "curves.png"}
    ),
    "folder": (lambda m, media: (media.rmdir(), media.write_text("")), None),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_run_is_finished_whatever_its_media_do(almost, tmp_path, monkeypatch, capsys, what):
    folder, (spoil, left) = tmp_path / "run", BROKEN[what]
    shutil.copytree(almost, folder)
    for path in (folder / "media").iterdir():
        path.unlink()
    expected = (folder / "evaluation.json").read_bytes()
    (folder / "evaluation.json").unlink()
    spoil(monkeypatch, folder / "media")
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    said = capsys.readouterr()
    notices = [line for line in said.err.splitlines() if line.startswith("simulus-nb: no ")]
    assert notices and "Traceback" not in said.err and "return" in said.out
    assert (folder / "evaluation.json").read_bytes() == expected and RunFolder(folder).result(
        1
    ) is not None
    assert left is None or {p.name for p in (folder / "media").iterdir()} == left
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    # finished: left as it is
    assert (
        main(["train", "--resume", "--out", str(folder)]) == 0
        and "return" in capsys.readouterr().out
    )
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_the_score_is_printed_where_nothing_can_be_written(almost, monkeypatch, capsys):
    monkeypatch.setattr(RunFolder, "write", full)
    monkeypatch.setattr("simulus_nb.recorder.whole", full)
    before = {p: p.read_bytes() for p in almost.rglob("*") if p.is_file()}
    assert main(["evaluate", str(almost), "--episodes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "over 2 episodes" in lines[0]
        and "not written (OSError" in lines[1]
        and "no film (OSError" in lines[2]
    )
    assert {p: p.read_bytes() for p in almost.rglob("*") if p.is_file()} == before
