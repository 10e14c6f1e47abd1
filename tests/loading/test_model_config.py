from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest

from utils.errors import ConfigError
from utils.loading.model_config import ModelConfig


def canvas(**more):
    nodes = [
        {"id": "embedding_0", "type": "embedding", "params": {"vocab_size": 100, "max_seq_len": 32, "d_model": 16}},
        {"id": "mhsa_0", "type": "attention", "params": {"num_heads": 4}},
        {"id": "residual_0", "type": "residual", "params": {}},
    ]
    return {"version": "1.0", "model_name": "M", "nodes": nodes, **more}


@pytest.mark.parametrize(
    ("raw", "sizes"),
    [
        ({"vocab_size": 50257, "d_model": 768, "nhead": 12, "num_layers": 6, "max_seq_len": 512}, (50257, 512, 768, 6, 12)),
        ({"vocab_size": 9, "n_positions": 8, "n_embd": 4, "n_layer": 2, "n_head": 1}, (9, 8, 4, 2, 1)),
        ({"vocab_size": 9, "max_position_embeddings": 8, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1}, (9, 8, 4, 2, 1)),
        ({"text_config": {"vocab_size": 9, "hidden_size": 4}}, (9, None, 4, None, None)),
        ({"vocab_size": 512.0, "d_model": None}, (512, None, None, None, None)),
        (canvas(), (100, 32, 16, None, 4)),
        ({"graph": canvas()}, (100, 32, 16, None, 4)),
        ({**canvas(), "vocab_size": 7}, (7, 32, 16, None, 4)),
        ({"vocab_size": 9, "num_heads": [3, 6], "num_layers": [2, 2]}, (9, None, None, None, None)),  # one per stage
        ({}, (None,) * 5),
    ],
)  # fmt: skip
def test_sizes_are_found_in_every_form(raw, sizes):
    config = ModelConfig.of(raw)
    assert (config.vocab_size, config.max_seq_len, config.d_model, config.num_layers, config.num_heads) == sizes
    assert ModelConfig.from_json(json.dumps(raw)) == ModelConfig.of(raw)


EDGES = (("embedding_0", "mhsa_0"), ("mhsa_0", "residual_0"))


@pytest.mark.parametrize(
    "more",
    [
        {"edges": [{"source": "embedding_0", "target": "mhsa_0"}, {"source": "mhsa_0", "target": "residual_0"}]},
        {"connections": [{"from": "embedding_0", "to": "mhsa_0"}, {"from": "mhsa_0", "to": "residual_0"}]},
        {"edges": [["embedding_0", "mhsa_0"], ["mhsa_0", "residual_0"]]},
        {"edges": [{"source": "embedding_0.out", "target": "mhsa_0.query"}, {"source": "mhsa_0:0", "target": "residual_0/a"}]},
        {"edges": [{"source": {"node": "embedding_0", "port": "out"}, "target": {"node": "mhsa_0"}},
                   {"id": "e1", "source": "mhsa_0", "target": "residual_0"}]},
    ],
)  # fmt: skip
def test_edges_in_each_style(more):
    assert ModelConfig.of(canvas(**more)).edges == EDGES


@pytest.mark.parametrize(
    "inputs",
    [
        ["mhsa_0", "embedding_0"],
        [{"id": "mhsa_0"}, {"source": "embedding_0"}],
        [{"from": "mhsa_0.out"}, {"node": "embedding_0"}],
        {"branch": "mhsa_0", "skip": "embedding_0"},
        [["mhsa_0", 0], "embedding_0.out"],
    ],
)
def test_inputs_of_nodes_in_each_style(inputs):
    raw = canvas()
    raw["nodes"][2]["inputs"] = inputs
    config = ModelConfig.of(raw)
    assert config.nodes[2].inputs == ("mhsa_0", "embedding_0")
    assert config.edges == (("mhsa_0", "residual_0"), ("embedding_0", "residual_0"))


def test_an_exact_id_with_a_dot_wins_and_the_models_own_ends_need_no_node():
    raw = {"nodes": [{"id": "a.b"}, {"id": "a"}], "edges": [["input_ids", "a.b"], ["a.b", "a"], ["a", "output"]]}
    assert ModelConfig.of(raw).edges == (("input_ids", "a.b"), ("a.b", "a"), ("a", "output"))
    assert ModelConfig.of({"nodes": [], "edges": [["a", "b"]]}).edges == (("a", "b"),)  # nothing to compare with


@pytest.mark.parametrize("config", [[1, 2], 5, 2.5, True, b"{}", (1,), {1}, "", "  "])
def test_what_describes_no_model_is_refused(config):
    with pytest.raises(ConfigError, match="A config must be a mapping"):
        ModelConfig.of(config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{vocab_size: 5}", r"no JSON: .* at line 1, column 2.\n    \{vocab_size: 5\}\n     \^"),
        ("", "no JSON"),
        ("[1]", "must hold a JSON object .* but holds a list"),
        ('"x"', "but holds a text"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "number that cannot be read"),
        ('{"a":' * 65 + "1" + "}" * 65, "65 levels deep; at most 64"),
        ("[" * 1_000_000, "levels deep"),
        ('{"a": "' + "x" * 5_000_000 + '"}', "bytes; at most 5,000,000"),
        ('{"vocab_size": "50k"}', "config.json: vocab_size must be a positive whole number, but is '50k'"),
        ('{"vocab_size": true}', "vocab_size must be a positive whole number"),
        ('{"vocab_size": 1e300}', "vocab_size must be a positive whole number of at most 1,000,000,000, but is 1e"),
        ('{"n_embd": 99999999999}', "n_embd must be a positive whole number of at most 1,000,000,000, but is 99999999999"),
        ('{"d_model": -1}', "d_model must be"),
        ('{"d_model": 1.5}', "d_model must be"),
        ('{"n_embd": [1]}', "n_embd must be"),
        ('{"n_layer": {"a": 1}}', "n_layer must be"),
        ('{"nodes": [{"id": "e", "params": {"vocab_size": 0}}]}', "e.vocab_size must be"),
        ('{"nodes": ["x"]}', r"nodes\[0\] must be an object with an \"id\""),
        ('{"nodes": [{"id": "a"}, {"id": "a"}]}', "several nodes are called a"),
        ('{"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}', r"edges\[0\] must name its"),
        ('{"nodes": [{"id": "a"}], "edges": "abc"}', "\"edges\" must be a list of edges, but is 'abc'"),
        ('{"nodes": [], "connections": 5}', "\"connections\" must be a list"),
        ('{"nodes": [{"id": "mhsa_0"}, {"id": "ffn_0"}], "edges": [["mhsa_0", "ffn_0"], ["mhsa_O", "ffn_0"]]}',
         r"edges\[1\] \(\"mhsa_O\" → \"ffn_0\"\) names 'mhsa_O', and no node .* nearest is 'mhsa_0'"),
        ('{"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "zzz"}]}', "names 'zzz', .* nearest is 'a'"),
        ('{"nodes": [{"id": "a", "inputs": [true]}]}', 'inputs of node "a" must name nodes'),
    ],
)  # fmt: skip
def test_bad_configs_are_refused_with_the_place(text, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_json(text)


def test_brackets_inside_strings_are_no_depth():
    assert ModelConfig.from_json(json.dumps({"a": "[" * 100 + '"\\{' * 100})).raw["a"].startswith("[")


@dataclasses.dataclass
class Settings:
    vocab_size: int = 5
    n_embd: int = 4


class Plain:
    vocab_size = 5
    hidden_size = 4
    dtype = object()

    def method(self):
        return 1


class Like:
    def to_dict(self):
        return {"vocab_size": 5, "n_embd": 4}


@pytest.mark.parametrize(
    "config", [SimpleNamespace(vocab_size=5, d_model=4), Settings(), Plain(), Plain, Like(), {"n_vocab": 5, "dim": 4}]
)
def test_any_object_with_attributes(config):
    found = ModelConfig.of(config)
    assert (found.vocab_size, found.d_model) == (5, 4)
    json.dumps(found.to_dict())


def test_none_itself_and_paths(tmp_path):
    assert ModelConfig.of(None) == ModelConfig()
    config = ModelConfig.of({"vocab_size": 3})
    assert ModelConfig.of(config) is config
    (tmp_path / "config.json").write_text('{"vocab_size": 3}', encoding="utf-8-sig")
    assert ModelConfig.of(tmp_path / "config.json").vocab_size == 3
    assert ModelConfig.of(str(tmp_path)).vocab_size == 3
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelConfig.of(tmp_path / "missing.json")


def test_raw_keys_are_attributes_and_survive_copies():
    config = ModelConfig.of({"vocab_size": 3, "dropout": 0.1})
    for same in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert same.dropout == 0.1
        assert same == config
    with pytest.raises(AttributeError, match="no 'bias'; it knows vocab_size, dropout"):
        _ = config.bias
    assert not hasattr(config, "__len__")


@pytest.mark.parametrize("raw", [{"n_embd": 4, "x": [1]}, canvas(edges=[["embedding_0", "mhsa_0"]])])
def test_to_dict_reads_back_the_same(raw):
    config = ModelConfig.of(raw)
    again = ModelConfig.of(config.to_dict())
    assert (again.d_model, again.nodes, again.edges) == (config.d_model, config.nodes, config.edges)
    bare = dataclasses.replace(config, raw={})
    assert ModelConfig.of(bare.to_dict()).nodes == config.nodes


def test_updates_win_under_any_spelling():
    config = ModelConfig.of({"d_model": 768, "vocab_size": 9, "dropout": 0.5}).updated({"n_embd": 16, "dropout": 0.0})
    assert (config.d_model, config.vocab_size, config.dropout) == (16, 9, 0.0)
    assert ModelConfig.of(canvas()).updated({"vocab_size": 7}).vocab_size == 7
