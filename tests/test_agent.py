"""The agent: actions by temperature and chance, memories that do not mix, files that bring back the
same agent."""
import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.agent import PARTS, Agent, Policy, choose, from_plain, pick_device, read_agent
from simulus_nb.checkpoint import load_checkpoint, save_checkpoint
from simulus_nb.controller import ControllerConfig
from simulus_nb.files import DamagedError
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.tokenizer import TokenEmbedding, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig
from simulus_nb.world_model import WorldModelConfig

SETTINGS = settings(deadline=None, max_examples=25)
SIZES = dict(
    tokenizer=TokenizerConfig(
        VQVAEConfig(image_size=16, channels=8, stages=2, code_dim=16, vocab=32, perceptual="none")
    ),
    world_model=WorldModelConfig(RetNetConfig(width=16, heads=2, layers=1, dropout=0.0)),
    controller=ControllerConfig(width=16, channels=(8, 8), embedding=8),
)
MIXED = gs.Dict(
    {
        "eye": gs.Box(0, 255, (16, 16, 3), np.uint8),
        "arm": gs.Box(-9, 9, (3,), np.float32),
        "inside": gs.Dict(
            {"gear": gs.Discrete(4, start=1), "map": gs.Box(0, 6, (3, 4, 2), np.int64)}
        ),
    }
)


def make(obs=MIXED, action=gs.MultiDiscrete([3, 5]), seed=0, **sizes):
    torch.manual_seed(seed)
    agent = Agent(ObsSpec.from_space(obs), ActionSpec.from_space(action), **(SIZES | sizes))
    torch.nn.init.normal_(agent.controller.actor.weight)
    return agent.eval()


def observe(agent, space, n, seed):
    "n random observations, flattened."
    space.seed(seed)
    flat = [agent.obs_spec.flatten(space.sample()) for _ in range(n)]
    return {k: np.stack([f[k] for f in flat]) for k in flat[0]}


@SETTINGS
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=3), st.floats(0.05, 5), st.floats(0, 1),
    st.integers(0, 10**6)
)
def test_frequencies_follow_the_formula(nvec, temperature, epsilon, seed):
    g, n = torch.Generator().manual_seed(seed), 20_000
    logits = torch.randn(len(nvec), max(nvec), generator=g)
    for k, size in enumerate(nvec):
        logits[k, size:] = torch.finfo(torch.float32).min   # choices that a dimension does not have
    action = choose(logits.expand(n, -1, -1), torch.tensor(nvec), temperature, epsilon, g)
    uniform = torch.ones(1)
    policy = torch.ones(1)
    for k, size in enumerate(nvec):
        policy = torch.outer(
            policy, (logits[k, :size].double() / temperature).softmax(-1).float()
        ).flatten()
        uniform = torch.outer(uniform, torch.full((size,), 1 / size)).flatten()
    p = (1 - epsilon) * policy + epsilon * uniform
    assert (action < torch.tensor(nvec)).all() and (action >= 0).all()
    joint = torch.from_numpy(np.ravel_multi_index(tuple(action.T.numpy()), nvec))
    share = torch.bincount(joint, minlength=len(p)) / n
    assert ((share - p).abs() < 6 * (p * (1 - p) / n).sqrt() + 3e-4).all()


def test_limits_of_temperature():
    sizes, logits = torch.tensor([4]), torch.tensor([0.0, 3.0, 3.0, -1.0]).expand(4000, 1, -1)
    assert (choose(logits, sizes, 0) == 1).all()                            # of equals the first
    cold = choose(logits, sizes, 1e-30, generator=torch.Generator().manual_seed(0))
    assert set(cold.flatten().tolist()) == {1, 2} and abs((cold == 1).float().mean() - 0.5) < 0.05
    hot = choose(logits, sizes, 1e30, generator=torch.Generator().manual_seed(0))
    assert (torch.bincount(hot.flatten(), minlength=4) / 4000 - 0.25).abs().max() < 0.05


def test_the_policy_is_untouched_by_epsilon_zero():
    sizes, logits = torch.tensor([3]), torch.randn(50, 1, 3)
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(
        choose(logits, sizes, generator=a), choose(logits, sizes, epsilon=0.0, generator=b)
    )
    assert torch.equal(a.get_state(), b.get_state())


@SETTINGS
@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 10**6))
def test_side_by_side_is_as_alone(n, steps, seed):
    agent = make().double()
    rng = np.random.default_rng(seed)
    obs = [observe(agent, MIXED, n, seed + t) for t in range(steps)]
    begins = rng.random((steps, n)) < 0.3
    begins[0] = True
    together = agent.policy(n, temperature=0)
    actions = [together(o, s) for o, s in zip(obs, begins)]
    for i in range(n):
        alone = agent.policy(1, temperature=0)
        own = [
            alone({k: x[i : i + 1] for k, x in o.items()}, s[i : i + 1])
            for o, s in zip(obs, begins)
        ]
        assert all((a[i] == b[0]).all() for a, b in zip(actions, own))
        for x, y in zip(together.state, alone.state):
            assert torch.allclose(x[:, i], y[:, 0], rtol=1e-9, atol=1e-12)


def test_memory_equals_one_pass_of_c():
    "Stepping a policy leaves the state that C's sequence form computes."
    agent = make().double()
    obs, policy = [observe(agent, MIXED, 2, t) for t in range(5)], agent.policy(2)
    actions = torch.from_numpy(
        np.stack([policy(o, np.array([t == 0] * 2)) for t, o in enumerate(obs)], 1)
    )
    z = agent.tokenizer.encode(
        {k: torch.from_numpy(np.stack([o[k] for o in obs], 1)) for k in obs[0]}
    )
    state = agent.controller(z, actions)[2]
    for x, y in zip(policy.state, state):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)


def test_act_is_a_policy_for_one():
    agent = make(action=gs.Box(-2, 3, (2,), np.float32))
    raw = [MIXED.sample() for _ in range(6)]
    policy = agent.policy(1, temperature=0)
    for t, o in enumerate(raw):
        expected = agent.action_spec.decode(
            policy(
                {k: x[None] for k, x in agent.obs_spec.flatten(o).items()}, np.array([t in (0, 3)])
            )
        )[0]
        if t == 3:
            agent.reset()
        action = agent.act(o, temperature=0)
        assert (action == expected).all() and action.shape == (2,) and action.dtype == np.float32
    torch.manual_seed(5)
    agent.reset()
    first = [agent.act(o) for o in raw]
    torch.manual_seed(5)
    agent.reset()
    second = [agent.act(o) for o in raw]
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "action", [gs.Discrete(3, start=-1), gs.MultiDiscrete([3, 5]), gs.Box(-2, 3, (2,), np.float32)]
)
def test_save_load_act_bit_for_bit(tmp_path, action):
    agent = make(action=action, controller=dataclasses.replace(SIZES["controller"], shared=False))
    agent.save(tmp_path / "a")
    loaded = Agent.load(tmp_path / "a")
    assert (
        not loaded.training
        and loaded.describe() == agent.describe()
        and loaded.action_spec == agent.action_spec
        and loaded.obs_spec == agent.obs_spec
    )
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in agent.state_dict().items())
    play = lambda x: [
        x.policy(2, epsilon=0.2, generator=torch.Generator().manual_seed(3))(
            observe(x, MIXED, 2, t), np.array([True, True])
        )
        for t in range(5)
    ]
    assert np.array_equal(play(agent), play(loaded))
    loaded.save(tmp_path / "b")                                     # and once more: a fixed point
    assert (tmp_path / "a/save-00000001/agent.safetensors").read_bytes() == (
        tmp_path / "b/save-00000001/agent.safetensors"
    ).read_bytes()


def test_run_folder_is_read_too(tmp_path):
    agent = make()
    meta = agent.describe() | {"epoch": 3}
    meta["config"] = meta["config"] | {"env": "x", "train_v": {"lr": 1.0}}
    save_checkpoint(
        tmp_path / "run" / "checkpoint",
        {"agent": agent.state_dict(), "scale": {"c": torch.ones(1)}}, meta
    )
    assert all(
        torch.equal(v, agent.state_dict()[k])
        for k, v in Agent.load(tmp_path / "run").state_dict().items()
    )
    assert read_agent(tmp_path / "run")[1]["epoch"] == 3


def test_what_is_no_agent_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        Agent.load(tmp_path)
    save_checkpoint(tmp_path / "x", {"agent": {}}, {"epoch": 1})
    with pytest.raises(UserError, match="describes no agent"):
        Agent.load(tmp_path / "x")
    agent = make()
    meta = agent.describe()
    meta["config"]["controller"]["width"] = 24
    save_checkpoint(tmp_path / "y", {"agent": agent.state_dict()}, meta)
    with pytest.raises(UserError, match="wrong shape: controller"):
        Agent.load(tmp_path / "y")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps:5", "meta", torch.device("cuda", 99)])
def test_a_device_that_is_not_there_is_no_damage(tmp_path, device):
    make().save(tmp_path)
    with pytest.raises(UserError, match=f"^device '{device}' is not available") as e:
        Agent.load(tmp_path, device=device)
    assert not isinstance(e.value, DamagedError)
    assert Agent.load(tmp_path, device="auto").device == pick_device("auto")
    with pytest.raises(RuntimeError):                           # torch's own, and no damage either
        load_checkpoint(tmp_path, device="gpu")


def test_parts(tmp_path):
    old = make(seed=1)
    old.save(tmp_path)
    new = make(seed=2, action=gs.Discrete(2))                           # another world drawn alike
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(
        UserError, match=r"wrong shape: world_model\.\S+ \(8, 16\) instead of \(2, 16\)"
    ):
        new.load_parts(tmp_path, ("tokenizer", "world_model"))
    # nothing half-loaded
    assert all(torch.equal(before[k], v) for k, v in new.state_dict().items())
    assert new.load_parts(tmp_path) is new
    for name, value in new.state_dict().items():
        assert torch.equal(
            value, (old.state_dict() if name.startswith("tokenizer.") else before)[name]
        )
    books, theirs = (
        [m.codebook() for m in x.modules() if isinstance(m, TokenEmbedding) and m.codebook]
        for x in (new, old)
    )
    # M and C read the new alphabet at once
    assert len(books) == 2 and all(map(torch.equal, books, theirs))
    other = make(gs.Box(0, 255, (16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="unexpected"):
        other.load_parts(tmp_path)
    for wrong in ((), ("V",), ("tokenizer", "replay")):
        with pytest.raises(UserError, match="parts to load"):
            new.load_parts(tmp_path, wrong)


def test_one_codebook_and_no_gradient_into_it():
    agent = make(
        tokenizer=TokenizerConfig(
            dataclasses.replace(SIZES["tokenizer"].image, quantiser="vq-gradient")
        )
    )
    z = torch.zeros(2, 3, agent.tokenizer.layout.S, dtype=torch.long)
    a = torch.zeros(2, 3, 2, dtype=torch.long)
    prediction, _ = agent.world_model(z, a)
    (prediction.reward.sum() + sum(y.sum() for y in agent.controller(z, a)[:2])).backward()
    assert all(p.grad is None for p in agent.tokenizer.parameters())
    assert (
        sum(
            p.data_ptr() == agent.tokenizer.images()["eye"].codebook.data_ptr()
            for p in agent.parameters()
        )
        == 1
    )


@pytest.mark.parametrize("kwargs", [dict(temperature=-1), dict(epsilon=-0.1), dict(epsilon=1.5)])
def test_wrong_knobs(kwargs):
    with pytest.raises(UserError, match="temperature >= 0"):
        Policy(make(gs.Discrete(3), gs.Discrete(2)), 1, **kwargs)


@dataclasses.dataclass(frozen=True)
class Inner:
    pair: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ()
    maybe: int | None = None

@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    rate: float = 0.5
    flag: bool = False
    more: dict[str, int] = dataclasses.field(default_factory=dict)


@SETTINGS
@given(
    st.builds(
        Outer,
        st.builds(
            Inner, st.tuples(*[st.floats(-1e6, 1e6)] * 2),
            st.lists(st.text(max_size=3), max_size=3).map(tuple), st.none() | st.integers()
        ),
        st.floats(-1e6, 1e6),
        st.booleans(),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
)
def test_from_plain_undoes_asdict(config):
    assert from_plain(Outer, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "values, words",
    [
        ({"rat": 1}, "unknown field rat"), ({"inner": {"x": 1}}, "unknown field inner.x"),
        ({"rate": "1"}, "rate must be float"), ({"rate": True}, "rate must be float"),
        ({"flag": 1}, "flag must be bool"), ({"inner": {"pair": [1]}}, "inner.pair must be"),
        ({"inner": {"pair": [1, "a"]}}, "inner.pair must be float"),
        ({"inner": {"maybe": 1.5}}, "inner.maybe must be"),
        ({"inner": [1]}, "inner must be an object"), ([], "the whole must be an object"),
        ({"more": []}, "more must be")
    ],
)
def test_from_plain_names_the_field(values, words):
    with pytest.raises(UserError, match=words):
        from_plain(Outer, values)


def test_from_plain_accepts_whole_numbers_for_floats_and_defaults():
    made = from_plain(Outer, {"rate": 2, "inner": {"pair": [1, 2]}})
    assert (
        made == Outer(rate=2.0)
        and isinstance(made.rate, float)
        and isinstance(made.inner.pair[0], float)
    )
    assert all(from_plain(config, {}) == config() for config in PARTS.values())


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-300, 1e-50, 1e-45, 1e-38, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smallest_temperatures_take_the_likeliest_action(temperature, dtype):
    logits = torch.tensor([[[0.5, 3.0, -1.0]], [[0.0, -2.0, 9.0]]], dtype=dtype)
    assert choose(logits, torch.tensor([3]), temperature).tolist() == [[1], [2]]


@pytest.mark.parametrize("temperature", [-1, -1e-300, float("nan"), -float("inf")])
def test_impossible_temperatures_are_refused_everywhere(temperature):
    world = gs.Box(-1, 1, (2,), np.float32)
    agent = Agent(ObsSpec.from_space(world), ActionSpec.from_space(gs.Discrete(3)), **SIZES)
    for use in (lambda: agent.policy(temperature=temperature),
                lambda: agent.act(world.sample(), temperature=temperature)):
        with pytest.raises(UserError, match="temperature >= 0"):
            use()


def test_a_number_too_large_for_a_float_is_said_shortly():
    with pytest.raises(UserError, match="dropout must be float, not 1000") as said:
        from_plain(RetNetConfig, {"dropout": 10**400})
    assert len(str(said.value)) < 120


@pytest.mark.parametrize("kind", ["loop", "letters", "nul"])
def test_a_name_that_no_folder_can_have(tmp_path, kind):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = tmp_path / {"loop": "loop", "letters": "x" * 300, "nul": "a\0b"}[kind]
    agent = Agent(ObsSpec.from_space(gs.Box(-1, 1, (2,), np.float32)),
                  ActionSpec.from_space(gs.Discrete(3)), **SIZES)
    for use in (agent.save, Agent.load, agent.load_parts):
        with pytest.raises(UserError, match="no folder can be called"):
            use(place)
