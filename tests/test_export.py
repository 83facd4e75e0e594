"""V, M and C as ONNX files: onnxruntime gives the same tokens as PyTorch for hundreds of steps, the
manifest says what goes in and out, and what cannot be exported is refused in one line."""
import json
import re
import sys

import numpy as np
import pytest
import torch
from test_dream import Mixed, small_catch, world
from torch import nn

from simulus_nb import export
from simulus_nb.catch import Catch
from simulus_nb.config import preset
from simulus_nb.export import (
    LIMIT, NEEDED, Graph, apart, export_agent, graphs_of, levels, likeliest, load_export, self_test,
    write_graph
)
from simulus_nb.loop import make_agent
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.vector_tokens import VectorQuantizer

WORLDS = {"catch": small_catch, "mixed": Mixed}


def have():
    for name in NEEDED:
        pytest.importorskip(name)


@pytest.fixture(scope="module", params=WORLDS)
def exported(request, tmp_path_factory):
    "An agent, its graphs, its files and their manifest."
    have()
    agent, replay = world(WORLDS[request.param])
    folder = tmp_path_factory.mktemp(request.param) / "deep" / "out"
    export_agent(agent, folder, steps=10)
    return agent, replay, graphs_of(agent), *load_export(folder), folder


def test_the_same_tokens_for_200_steps(exported):
    "At temperature 0 a dream is a long chain in which one token that differs changes the rest."
    _, replay, graphs, files, *_ = exported
    for row in (0, 7):
        z = replay.tokens[row:row + 1].long()
        ours, theirs = (likeliest(parts, graphs, z, 200) for parts in (graphs, files))
        assert torch.equal(ours, theirs)
        assert len(ours.unique(dim=0)) > 1                      # no standing picture


@pytest.mark.parametrize(
    "changes",
    [{"world_model.sequence": "attention"},
     {"world_model.sequence": "attention", "world_model.attention.fade": True},
     {"tokenizer.image.quantiser": "fsq", "tokenizer.image.vocab": 512}],
)
def test_other_parts_in_the_same_places(changes, tmp_path):
    have()
    env = Catch()
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    agent = make_agent(preset("catch").change(changes), *specs).eval()
    found = export_agent(agent, tmp_path / "out", steps=25)["self_test"]["apart"]
    assert max(found.values()) <= LIMIT


def test_real_observations_become_the_same_tokens(exported):
    agent, replay, _, files, *_ = exported
    for row in range(20):
        obs = {k: x[row:row + 1] for k, x in replay.obs.items()}
        kinds = {m.key: m.kind for m in agent.obs_spec.modalities}
        inputs = [x if kinds[k] in ("image", "vector") else x.long() for k, x in obs.items()]
        assert torch.equal(files["encoder"](*inputs)[0], agent.tokenizer.encode(obs))


def test_the_self_test_finds_what_is_wrong(exported):
    agent, _, graphs, files, manifest, _ = exported
    found = self_test(agent, graphs, files, steps=5)
    assert max(found.values()) <= LIMIT
    assert max(manifest["self_test"]["apart"].values()) <= LIMIT
    for name in graphs:
        def off(*inputs, work=files[name]):
            return tuple(x + 1e-3 if x.is_floating_point() else x + 1 for x in work(*inputs))
        bad = self_test(agent, graphs, {**files, name: off}, steps=2)
        assert {n for n, d in bad.items() if d > LIMIT} == {name}


def test_the_manifest_says_what_goes_in_and_out(exported):
    agent, _, graphs, files, manifest, folder = exported
    assert {p.name for p in folder.iterdir()} == {"manifest.json", *(f"{n}.onnx" for n in graphs)}
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]   # nothing else is left
    assert manifest["opset"] == 18 and {"torch", *NEEDED} <= manifest["versions"].keys()
    for name, part in manifest["graphs"].items():
        assert [x["name"] for x in part["inputs"]] == files[name].names
        outputs = files[name](*graphs[name].inputs.values())
        assert [x["shape"] for x in part["outputs"]] == [list(x.shape) for x in outputs]
        kinds = [str(x.dtype).removeprefix("torch.") for x in outputs]
        assert [x["dtype"] for x in part["outputs"]] == kinds
    spans = [g["span"] for g in manifest["layout"]]
    assert spans[0][0] == 0 and spans[-1][1] == agent.tokenizer.layout.S
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))


def test_a_folder_that_is_there_is_left_alone(exported, tmp_path):
    agent = exported[0]
    (tmp_path / "mine").write_text("kept")
    for name in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="already"):
            export_agent(agent, name)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["kept"]


def test_what_cannot_be_a_graph_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    have()
    agent, _ = world(small_catch)
    class Loop(nn.Module):
        def forward(self, x):
            return x[:int(x.sum())] if x.max() > 0 else np.sort(x)
    bad = {"loop": Graph("loop", Loop(), {"x": torch.ones(3)}, ("y",))}
    monkeypatch.setattr(export, "graphs_of", lambda agent: bad)
    with pytest.raises(UserError, match="^loop cannot be exported: ") as e:
        export_agent(agent, tmp_path / "out")
    assert not re.search(r"[\n\x1b]", str(e.value)) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no graph that onnxruntime"):
        (tmp_path / "x.onnx").write_text("not a graph")
        export.Loaded(tmp_path / "x.onnx")


@pytest.mark.parametrize("name", NEEDED)
def test_without_the_extra_it_says_what_to_install(name, monkeypatch, tmp_path):
    for other in NEEDED:
        monkeypatch.setitem(sys.modules, other, None if other == name else json)
    with pytest.raises(UserError, match=r'pip install "simulus-nb\[play\]"'):
        export_agent(None, tmp_path / "out")
    graph = Graph("one", nn.ReLU(), {"x": torch.ones(1)}, ("y",))
    with pytest.raises(UserError, match="play"):
        write_graph(graph, tmp_path / "x.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"graphs": 3}', '{"graphs": {"a": {}}}'])
def test_a_folder_that_holds_no_export(text, tmp_path):
    if text:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="holds no export"):
        load_export(tmp_path)


def test_a_manifest_names_no_file_outside(tmp_path):
    have()
    (tmp_path / "secret.onnx").write_text("")
    (tmp_path / "in").mkdir()
    text = json.dumps({"graphs": {"a": {"file": "../secret.onnx"}}})
    (tmp_path / "in" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"in.secret\.onnx is no graph"):
        load_export(tmp_path / "in")


def test_counting_borders_is_the_quantizer():
    q = VectorQuantizer(bound=(1.0, 0.0, 50.0))
    x = torch.cat([torch.randn(200, 3) * s for s in (0.1, 1, 30, 1e4)])
    assert torch.equal(levels(q, x), q.encode(x))
    edge = q.borders[:, None].expand(-1, 3)                     # on a border: the lower one
    plain = VectorQuantizer()
    values = torch.sign(edge) * torch.expm1(edge.abs())
    assert torch.equal(levels(plain, values), plain.encode(values))


def test_distance_of_two_outputs():
    big = torch.tensor([torch.finfo(torch.float32).min, 1.0])
    assert apart(big, big) == 0 and apart(big, -big) == 2
    assert apart(torch.tensor([1]), torch.tensor([1])) == 0
    assert apart(torch.tensor([1.0]), torch.tensor([1])) == float("inf")
