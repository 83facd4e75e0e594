"""Playing in a dream: it begins where the real world stands and dreams as DreamEnv does; keys mean
what the world says; whatever comes in over HTTP costs one line and changes nothing."""
import http.client
import json
import random
import socket
import threading

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from test_dream import Mixed, small_catch, world

from simulus_nb.catch import Catch
from simulus_nb.cli import main
from simulus_nb.collect import Rows
from simulus_nb.dream import DreamEnv
from simulus_nb.play import (
    begin, change, controls_of, cooled, new_episode, record, respond, session, step, view, words_of
)
from simulus_nb.play_page import PAGE
from simulus_nb.play_server import JSON, PATIENCE, Game, PlayServer, Seat, answer
from simulus_nb.replay import ReplayBuffer
from simulus_nb.spaces import ActionSpec, UserError

HEADERS = {"host": "127.0.0.1:8077", "content-type": JSON}
WORLDS = pytest.mark.parametrize("make", [small_catch, Mixed])


def played(make, steps, context=4, **settings):
    "A session after so many real steps, and a replay of them with the present as its last row."
    s = session(world(make)[0], make(), context=context, seed=2, **settings)
    obs, taken, dice = [s.real.shown], [], np.random.default_rng(0)
    for _ in range(steps):
        taken.append(dice.integers(s.controls.sizes).tolist())
        step(s, taken[-1])
        obs.append(s.real.shown)
    n = steps + 1
    rows = Rows(
        {k: np.stack([o[k] for o in obs]) for k in obs[0]}, np.array([*taken, s.controls.rest]),
        np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool)
    )
    spec = s.agent.obs_spec, s.agent.action_spec.count, s.agent.tokenizer.layout.S
    replay = ReplayBuffer(n + 1, *spec)
    replay.extend(0, rows)
    return s, replay


def dream_env(s, replay, seed):
    "DreamEnv, begun in the last row of the replay."
    env = DreamEnv(s.agent, replay, horizon=s.horizon, context=s.context)
    env.reset(seed=seed)
    env.start.rows = torch.tensor([len(replay) - 1])
    env.start.known, env.start.z, env.start.memory = torch.zeros(1, dtype=torch.bool), None, None
    env.z, env.memory = env.start.draw(1, torch.Generator())
    env.generator.manual_seed(seed)
    return env


@WORLDS
@pytest.mark.parametrize("steps,context", [(0, 4), (2, 5), (2, 2), (2, 3)])
def test_a_dream_from_the_present_is_the_one_of_dream_env(make, steps, context):
    s, replay = played(make, steps, context, horizon=50)
    env = dream_env(s, replay, seed=9)
    begin(s, seed=9)
    assert torch.equal(s.memory, env.memory) and torch.equal(s.dream.z, env.z)
    change(s, where="dream")
    dice = np.random.default_rng(1)
    for _ in range(12):
        action = torch.tensor(dice.integers(s.controls.sizes)[None])
        step(s, action[0].tolist())
        raw = np.array(s.agent.action_spec.decode(action.numpy()))
        _, reward, ended, *_ = env.step(raw)
        assert torch.equal(s.dream.z, env.z) and torch.equal(s.memory, env.memory)
        assert s.dream.reward == reward[0] and (s.dream.over != "") == ended[0]
        if s.dream.over:
            break


@WORLDS
def test_the_real_world_is_not_disturbed_by_a_dream(make):
    "The same keys and seeds, with a dream and without one."
    shown = []
    for dreams in (False, True):
        s, _ = played(make, 1)
        if dreams:
            begin(s, seed=0)
        for _ in range(2):
            step(s, s.controls.rest)
        shown.append((s.real.shown, s.real.total, s.real.policy))
    for key in shown[0][0]:
        assert np.array_equal(shown[0][0][key], shown[1][0][key])
    assert shown[0][1] == shown[1][1] and torch.equal(shown[0][2], shown[1][2])


@WORLDS
def test_c_goes_on_as_it_would_have(make):
    "Its answers are those of a player who has seen and done the same."
    s, _ = played(make, 2)
    with torch.no_grad():
        z = torch.stack([*(z for z, _ in s.past), s.real.z], 1)
        a = torch.stack([*(a for _, a in s.past), torch.zeros_like(s.past[0][1])], 1)
        logits, value, _ = s.agent.controller(z, a)
    assert torch.allclose(logits[:, -1], s.real.policy, atol=1e-5)
    assert s.agent.controller.value.decode(value)[0, -1].item() == pytest.approx(
        s.real.value, abs=1e-5
    )
    begin(s)
    assert torch.equal(s.dream.policy, s.real.policy)


def test_at_temperature_0_a_dream_has_no_dice():
    ends = []
    for seed in (1, 2):
        s, _ = played(small_catch, 1, temperature=0.0)
        begin(s, seed=seed)
        for _ in range(3):
            step(s, [1])
        ends.append((s.dream.z, s.dream.over))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    x = torch.randn(50, 9)
    assert torch.equal(cooled(x, 0).softmax(-1).argmax(-1), x.argmax(-1))
    assert torch.allclose(cooled(x, 1e-2).softmax(-1), (x.double() / 1e-2).softmax(-1).float())
    assert torch.allclose(cooled(x, 1e9).softmax(-1), torch.full_like(x, 1 / 9))


def test_errors_are_counted_while_both_hear_the_same():
    s, _ = played(small_catch, 1)
    begin(s)
    step(s, [1])
    assert len(s.errors["obs"]) == 2 and s.errors["obs"][0] == 0
    change(s, where="dream")
    step(s, [1])
    change(s, where="both")
    step(s, [1])
    assert len(s.errors["obs"]) == 2 and not s.together
    begin(s)
    assert s.together and s.errors == {"obs": [0.0]}
    new_episode(s)
    assert not s.together


class Falls(Catch):
    "A world that fails when it is told to."
    broken = False

    def step(self, action):
        if self.broken:
            raise RuntimeError("the motor\nis hot")
        return super().step(action)


def test_a_world_that_fails_costs_one_line_and_not_the_dream():
    env = Falls(rows=6, cols=4, size=16)
    s = session(world(small_catch)[0], env)
    begin(s, seed=0)
    z = s.dream.z
    env.broken = True
    with pytest.raises(UserError, match="the motor is hot; begin a new episode") as e:
        step(s, [0])
    assert "\n" not in str(e.value) and s.dream.z is z and s.real.over == "the world failed"
    step(s, [0])                                                # the dream goes on
    assert s.dream.steps == 1
    with pytest.raises(UserError, match="nothing to dream from"):
        begin(s)
    env.broken = False
    new_episode(s)
    step(s, [0])
    assert s.real.steps == 1 and s.dream.steps == 2


@pytest.mark.parametrize(
    "space",
    [gs.Discrete(1), gs.Discrete(100), gs.MultiDiscrete([3, 12, 2, 9, 4]), gs.MultiBinary(3),
     gs.Box(-2, 5, (2,)), gs.Box(1, 3, (12,)), gs.Box(0, 0, (1,))],
)
def test_every_key_is_an_action_of_the_world(space):
    spec = ActionSpec.from_space(space)
    controls = controls_of(spec)
    for keys in [(), *(b.keys for b in controls.bindings)]:
        tokens = np.array([controls.tokens(list(keys))])
        action = spec.decode(tokens)[0]
        assert space.contains(np.asarray(action, space.dtype) if spec.shape else action)
        assert (spec.encode([action]) == tokens).all()
    for b in controls.bindings:
        out = controls.tokens(list(b.keys))
        assert all(out[i] == token for i, token in b.tokens.items())


def test_words_are_keys():
    words = ["NOOP", "FIRE", "UP", "UPRIGHT", "UPRIGHTFIRE"]
    atari = controls_of(ActionSpec("discrete", (5,)), words)
    held = [[], [" "], ["ArrowUp"], ["ArrowRight", "ArrowUp"], [" ", "ArrowRight", "ArrowUp"]]
    assert [atari.tokens(keys) for keys in held] == [[i] for i in range(5)]
    for odd in (["x"], ["UP", "FORWARD"], ["a"] * 2, []):       # no use: digits
        assert controls_of(ActionSpec("discrete", (2,)), odd).tokens(["2"]) == [1]
    class Strange(gymnasium.Env):
        def get_action_meanings(self):
            raise KeyError
    assert words_of(Strange()) == [] and words_of(Catch()) == ["LEFT", "NOOP", "RIGHT"]


def malformed(n, seed=0):
    "Requests of which none is right."
    dice = random.Random(seed)
    odd = [None, -1, 1e308, float("nan"), "x" * 300, [], [[]], {}, True, "../../etc/passwd", [None],
           ["ArrowLeft", 3], [10**30], -0.0, "\ud800", [0, 0], ["\x00"]]
    names = ["step", "begin", "reset", "change", "record", "state"]
    fields = {"keys": ["ArrowLeft"], "rest": [0], "policy": True, "seed": 1, "horizon": 5,
              "context": 3, "temperature": 1.0, "where": "both", "on": True}
    def wrong(field):
        while True:
            x = dice.choice(odd)
            fine = field in ("policy", "on") and x is True or field in ("keys", "temperature") and (
                x == [] or type(x) is float and 0 <= x <= 100)
            if not fine:
                return x
    for _ in range(n):
        kind = dice.randrange(4)
        if kind == 0:
            yield dice.choice(odd)
        elif kind == 1:
            yield {"do": dice.choice([x for x in odd if not isinstance(x, dict)])}
        elif kind == 2:
            yield {"do": dice.choice(names), dice.choice(["path", "file", "__class__", "s"]): 1}
        else:
            field = dice.choice(list(fields))
            yield {"do": dice.choice(names), field: wrong(field)}


def test_200_malformed_requests_change_nothing():
    s, _ = played(small_catch, 1)
    begin(s, seed=0)
    before = view(s)
    for request in malformed(200):
        with pytest.raises(UserError) as e:
            respond(s, request)
        assert "\n" not in str(e.value) and len(str(e.value)) < 500, request
    assert view(s) == before


@pytest.fixture(scope="module")
def server():
    s, _ = played(small_catch, 1)
    with PlayServer(Game(s), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def talk(server, text):
    "Send bytes to the server; the bytes that come back."
    with socket.create_connection(server.server_address, timeout=20) as line:
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        said = b""
        while piece := line.recv(65_536):
            said += piece
    return said


def post(server, request, method="POST", path="/play", **headers):
    "Status and JSON of an answer."
    line = http.client.HTTPConnection(*server.server_address, timeout=60)
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    line.request(method, path, body, {"Content-Type": JSON, **headers})
    found = line.getresponse()
    text = found.read()
    line.close()
    return found.status, json.loads(text) if method == "POST" else text


def test_200_malformed_requests_over_http(server):
    "Odd JSON, odd bytes, odd lines; then the game is as it was."
    game = server.game
    game.seat = Seat()
    player = post(server, {"do": "join"})[1]["player"]
    before, dice = post(server, {"do": "state", "player": player}), random.Random(1)
    for i, request in enumerate(malformed(140, seed=1)):
        if isinstance(request, dict):
            request = {**request, "player": player}
        status, found = post(server, request)
        assert status == 400 and set(found) == {"error"} and "\n" not in found["error"]
    for body in (b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"do": NaN}', b"1" * 5_000):
        assert post(server, body)[0] == 400
    for i in range(54):
        junk = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 200)))
        head = dice.choice([b"", b"GET ", b"POST /play HTTP/1.1\r\nHost: 127.0.0.1\r\n",
                            b"POST /play HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                            b"POST /play HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n"])
        talk(server, head + junk)
    assert post(server, {"do": "state", "player": player}) == before


def test_no_path_leads_to_a_file(server, tmp_path, monkeypatch):
    "Nothing is opened for a request; the page is a text in memory."
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: opened.append(args))
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/media/play-1.mp4", "//etc",
                 "/config.json", "/play/../../x", "/./", "/\\..\\x", "file:///etc/passwd"):
        for method in ("GET", "POST"):
            status, kind, text = answer(server.game, method, path, HEADERS, b"{}")
            assert status == 404 and kind == JSON
    assert answer(server.game, "GET", "/?x=../../etc", HEADERS)[2] == PAGE
    assert not opened


def test_only_its_own_page_may_ask(server):
    state = {"do": "state", "player": server.game.seat.player}
    assert post(server, state, Host="evil.example")[0] == 403           # DNS rebinding
    assert post(server, state, Origin="https://evil.example")[0] == 403
    assert post(server, state, **{"Content-Type": "text/plain"})[0] == 415     # needs no leave
    assert post(server, state, path="/")[0] == 405
    assert post(server, b"x" * 70_000)[0] == 413
    assert "http" not in PAGE.lower()                           # loads nothing from elsewhere


def test_two_clients_at_once(server):
    "One of them plays; the other is told so, and nothing that it sends is heard."
    game, results = server.game, []
    game.seat = Seat()
    def client():
        found = post(server, {"do": "join"})[1]
        steps = [post(server, {"do": "state", "player": found.get("player")})[0]
                 for _ in range(10)]
        results.append((found, steps))
    threads = [threading.Thread(target=client) for _ in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    (loser, lost), (winner, won) = sorted(results, key=lambda r: "player" in r[0])
    assert set(loser) == {"error"} and "another window" in loser["error"] and set(lost) == {400}
    assert set(winner) == {"player"} and set(won) == {200}
    post(server, {"do": "leave", "player": "nobody"})
    assert "error" in post(server, {"do": "join"})[1]
    post(server, {"do": "leave", "player": winner["player"]})           # the tab is closed
    assert "player" in post(server, {"do": "join"})[1]


def test_a_silent_player_loses_the_seat():
    now = [0.0]
    seat = Seat(lambda: now[0])
    first = seat.join()
    now[0] = PATIENCE - 1
    seat.check(first)
    now[0] += PATIENCE - 1
    with pytest.raises(UserError, match="another window"):
        seat.join()
    now[0] += 2
    second = seat.join()
    for other in (first, None, "", 3, [second]):
        with pytest.raises(UserError, match="load the page again"):
            seat.check(other)
    seat.check(second)


def test_a_port_in_use_is_one_line(server):
    with pytest.raises(UserError, match="--port"):
        PlayServer(server.game, port=server.server_address[1])
    for host in ("203.0.113.9", "::1", "no.such.host.invalid"):         # another port helps nothing
        with pytest.raises(UserError, match=f"cannot listen on {host}.*another with --host"):
            PlayServer(server.game, host, 0)


def test_a_film_needs_its_run(tmp_path):
    s, _ = played(small_catch, 1, media=tmp_path / "run" / "media")
    with pytest.raises(UserError, match="begin one first"):
        record(s, False)
    record(s, True)
    step(s, [0])
    with pytest.raises(UserError, match="run folder is gone"):
        record(s, False)
    assert not list(tmp_path.iterdir()) and len(s.frames) == 2          # nothing is lost
    s.media.mkdir(parents=True)
    (s.media / "play-7.mp4").write_text("mine")
    assert record(s, False) == s.media / "play-8.mp4" and s.frames is None
    assert (s.media / "play-7.mp4").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    ["play", "play {}", "play {} --port 70000", "play {} --context 1", "play {} --temperature -1",
     "export {}", "export {} --onnx {}/out", "export --onnx {}/out"],
)
def test_a_command_that_cannot_be_is_one_line(line, tmp_path, capsys):
    "There is no run; nothing is made, and no port is opened."
    assert main(line.format(*[tmp_path] * 2).split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("simulus-nb: ") and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())
