"""Models on the disk: found offline, described, removed; never by importing a hub's client."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakehub import FakeHub, Repo, tiny_model
from pulling import Puller

from appliance import paths
from appliance.errors import BusyError, IntegrityError, NotFoundError
from appliance.hub import local, store
from appliance.hub.layout import hf_cache, modelscope_cache
from appliance.hub.remove import plan_removal, remove

SHARD = "model-00002-of-00002.safetensors"


def test_find_offline_by_name_revision_and_folder(puller: Puller) -> None:
    folder = puller.pull().folder
    puller.hub.close()
    assert store.find("org/tiny") == folder
    assert store.find(str(folder)) == folder
    revision = "main" if puller.source == "hf" else "master"
    assert store.find(f"org/tiny@{revision}") == store.find("org/tiny", revision) == folder


def test_what_is_not_here_names_the_pull(puller: Puller) -> None:
    with pytest.raises(NotFoundError, match="not on this disk") as e:
        store.find("org/tiny")
    assert e.value.hint == "appliance pull org/tiny"
    puller.pull()
    with pytest.raises(NotFoundError) as e:
        store.find("org/tony")
    assert e.value.hint.splitlines() == ["appliance pull org/tony", "on this disk: org/tiny"]
    with pytest.raises(NotFoundError, match="not its revision 'v2'") as e:
        store.find("org/tiny@v2")
    assert e.value.hint == "appliance pull org/tiny@v2"
    with pytest.raises(NotFoundError, match=r"lacks config.json, \*.safetensors"):
        store.find("./nowhere")


def test_half_a_model_is_not_served(puller: Puller) -> None:
    folder = puller.pull().folder
    (folder / SHARD).unlink()
    with pytest.raises(NotFoundError, match=f"only in part: it lacks {SHARD}") as e:
        store.find("org/tiny")
    assert e.value.hint.startswith("appliance pull org/tiny")
    assert ("modelscope" in e.value.hint) == (puller.source == "modelscope")
    puller.assert_complete(puller.pull().folder)


def test_a_lost_tokenizer_is_noticed(puller: Puller) -> None:
    (puller.pull().folder / "tokenizer.json").unlink()
    assert not store.installed()[0].complete


def test_parts_are_listed(puller: Puller) -> None:
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)
    plan.layout.part(shard).parent.mkdir(parents=True)
    plan.layout.part(shard).write_bytes(b"x" * 1000)
    [model] = store.installed()
    assert (model.name, model.partial_bytes, model.complete) == ("org/tiny", 1000, False)
    removal = plan_removal([model])
    assert removal.whole and remove(removal) == 1000
    assert not store.installed() and not plan.layout.repo.exists()


def test_remove(puller: Puller) -> None:
    puller.pull()
    [model] = store.installed()
    removal = plan_removal([model])
    freed = remove(removal)
    assert freed >= sum(map(len, puller.files.values()))
    assert not store.installed() and not model.repo.exists()
    puller.assert_complete(puller.pull().folder)


def test_removing_a_revision_keeps_what_another_needs(hf: Puller) -> None:
    old = hf.pull().folder
    changed = tiny_model()
    changed[SHARD] = changed[SHARD][:-1] + b"!"
    hf.hub.hf["org/tiny"] = Repo(changed)
    new = hf.pull().folder
    old_model = next(m for m in store.installed() if m.folder == old)
    freed = remove(plan_removal([old_model]))
    assert freed == len(hf.files[SHARD])
    assert not old.exists()
    Puller(hf.hub, "hf", changed).assert_complete(new)


def run_that_serves(folder: Path, listen: bool) -> socket.socket:
    run = paths.run_dir("default")
    paths.config_file(run).write_text(json.dumps({"model": {"path": str(folder), "id": "x"}}))
    server = socket.socket(socket.AF_UNIX)
    if listen:
        server.bind(str(paths.control_socket(run)))
        server.listen()
    return server


def test_what_is_served_is_not_removed(puller: Puller) -> None:
    folder = puller.pull().folder
    with run_that_serves(folder, listen=True):
        [model] = store.installed()
        with pytest.raises(BusyError, match="served by the run 'default'") as e:
            plan_removal([model])
        assert e.value.hint == "appliance down default"


def test_a_dead_run_does_not_hold_a_model(puller: Puller) -> None:
    with run_that_serves(puller.pull().folder, listen=False):
        assert plan_removal(store.installed()).whole


def test_older_modelscope_layouts_are_found(env: dict[str, str]) -> None:
    folder = modelscope_cache() / "hub/models/org/tiny-1___5"
    folder.mkdir(parents=True)
    for path, content in tiny_model().items():
        (folder / path).write_bytes(content)
    assert store.find("org/tiny-1.5") == folder


def test_the_card(puller: Puller) -> None:
    card = local.card(puller.pull().folder)
    assert card.parameters == 100_000 and card.dtypes == ("F32",)
    assert card.license == "apache-2.0" and card.chat_template and card.tokenizer


def test_a_broken_weight_file_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "model.safetensors"
    ten = (10).to_bytes(8, "little")
    for content in (b"", b"\xff" * 64, ten + b'{"a": 1}  ', ten + b"[]        "):
        bad.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"model.safetensors is no safetensors file"):
            local.card(tmp_path)


def test_an_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    with pytest.raises(IntegrityError, match="outside of its folder"):
        store.find(str(tmp_path))


def test_caches_are_where_the_clients_say(env: dict[str, str], tmp_path: Path) -> None:
    for more in (
        {},
        {"HF_HUB_CACHE": str(tmp_path / "a")},
        {"HF_HOME": "", "XDG_CACHE_HOME": str(tmp_path / "b")},
        {"HUGGINGFACE_HUB_CACHE": str(tmp_path / "c")},
        {"HF_HOME": "$HOME/d", "MODELSCOPE_CACHE": str(tmp_path / "e")},
    ):
        code = (
            "from appliance.hub.layout import hf_cache, modelscope_cache as ms\n"
            "a, b = hf_cache(), ms()\n"
            "from huggingface_hub import constants\n"
            "from modelscope_hub import HubConfig\n"
            "assert str(a) == constants.HF_HUB_CACHE, (a, constants.HF_HUB_CACHE)\n"
            "assert b.resolve() == HubConfig().cache_dir, (b, HubConfig().cache_dir)\n"
        )
        surroundings = {k: v for k, v in {**env, **more}.items() if v}
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=surroundings, check=True)


def test_finding_loads_no_client(env: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from appliance.hub import store\n"
        "store.installed()\n"
        "heavy = {'torch', 'huggingface_hub', 'modelscope_hub', 'httpx', 'requests'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_pulling_loads_no_torch(env: dict[str, str]) -> None:
    code = (
        "import sys, appliance.cli.pull, appliance.cli.models\n"
        "heavy = {'torch', 'transformers', 'modelscope', 'modelscope_hub', 'textual'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_a_deleted_cache_is_no_trouble(puller: Puller, hub: FakeHub) -> None:
    puller.pull()
    shutil.rmtree(hf_cache(), ignore_errors=True)
    shutil.rmtree(modelscope_cache(), ignore_errors=True)
    assert store.installed() == []
    puller.assert_complete(puller.pull().folder)
