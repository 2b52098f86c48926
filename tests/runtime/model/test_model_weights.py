"""Every tensor placed, every parameter filled, or one error that names both."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import IntegrityError, NotFoundError
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig
from appliance.runtime.engine.load import load_model
from appliance.runtime.model import weights
from appliance.runtime.model.files import files_of
from appliance.runtime.model.parallel.comm import Solo
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.registry import read_spec
from tests.reference import models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return models.make(tmp_path_factory.mktemp("saved"), "qwen2")


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved.folder, tmp_path / "model")
    return tmp_path / "model"


def load(folder, **model):
    config = RuntimeConfig(
        run="t",
        dir=str(folder),
        model=ModelConfig(
            path=str(folder), id="t", dtype="float32", quantization="none", context=64, **model
        ),
        engine=EngineConfig(device="cpu", attention="reference", graphs=False),
    )
    told: list[float] = []
    loaded = load_model(config, read_spec(folder), Mesh(), Solo(), torch.device("cpu"), told.append)
    return loaded.model, told


def change(folder, edit):
    """Applies `edit` to the tensors of the first shard, and keeps the index true."""
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = sorted(set(index["weight_map"].values()))[0]
    tensors = load_file(folder / name)
    edit(tensors)
    save_file(tensors, folder / name)
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != name}
    index["weight_map"] |= dict.fromkeys(tensors, name)
    index_path.write_text(json.dumps(index))
    return name


def multiplied(scheme, ins):
    """A linear's weight as its product with the identity, whatever layout it is kept in."""
    return scheme(torch.eye(ins), None).T


def test_all_shards_are_read_and_progress_ends_at_one(folder, saved):
    assert len(files_of(folder)) > 1
    model, told = load(folder)
    assert told == sorted(told) and told[-1] == 1.0
    want = saved.model.state_dict()
    assert torch.equal(model.embedding.weight, want["model.embed_tokens.weight"])
    qkv = torch.cat([want[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(multiplied(model.layers[1].attention.qkv.weight, 64), qkv)
    bias = torch.cat([want[f"model.layers.1.self_attn.{p}_proj.bias"] for p in "qkv"])
    assert torch.equal(model.layers[1].attention.qkv.bias, bias)


def test_one_error_names_what_has_no_place_what_is_missing_and_what_does_not_fit(folder):
    def edit(tensors):
        names = sorted(n for n in tensors if n.endswith("weight"))
        tensors["model.extra.weight"] = tensors.pop(names[0])
        tensors[names[1]] = torch.zeros(3, 3)
        edit.missing, edit.wrong = names[0], names[1]

    change(folder, edit)
    with pytest.raises(IntegrityError) as caught:
        load(folder)
    for name in ("model.extra.weight", edit.missing, edit.wrong):
        assert name in caught.value.message


def test_a_truncated_file_is_damaged(folder):
    path = files_of(folder)[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="damaged"):
        load(folder)


def test_a_missing_shard_is_told_before_anything_is_read(folder):
    files_of(folder)[1].unlink()
    with pytest.raises(NotFoundError, match="lacks 1 of"):
        load(folder)


def test_an_index_may_not_point_outside(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(IntegrityError, match="outside"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(IntegrityError):
        load(folder)


def test_pickled_weights_are_not_read(tmp_path, saved):
    (tmp_path / "config.json").write_bytes((saved.folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="safetensors"):
        load(tmp_path)


def test_dummy_weights_need_only_a_config(tmp_path, saved):
    (tmp_path / "config.json").write_bytes((saved.folder / "config.json").read_bytes())
    model, _ = load(tmp_path, load_format="dummy")
    weight = multiplied(model.layers[0].mlp.down.weight, 112)
    assert 0.015 < float(weight.std()) < 0.025
    assert torch.equal(model.norm.weight, torch.ones_like(model.norm.weight))
    again, _ = load(tmp_path, load_format="dummy")
    assert torch.equal(multiplied(again.layers[0].mlp.down.weight, 112), weight)


@pytest.mark.parametrize("threads", [1, 3, 8, 100])
def test_one_file_is_read_by_several_threads(saved, tmp_path, monkeypatch, threads):
    """Each tensor once, whatever the number of parts."""
    monkeypatch.setattr(weights, "THREADS", threads)
    tensors = {}
    for file in saved.folder.glob("*.safetensors"):
        tensors |= load_file(file)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(saved.folder / name, tmp_path)
    parts = weights._parts(files_of(tmp_path))
    assert sorted(name for part in parts for name in part.names) == sorted(tensors)
    assert min(threads, len(tensors)) / 2 <= len(parts) <= threads
    model, told = load(tmp_path)
    assert len(told) == len(parts) and told[-1] == 1.0
    want = saved.model.state_dict()
    down = want["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(multiplied(model.layers[1].mlp.down.weight, 112), down)
