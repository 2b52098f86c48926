"""The import contract, the rooms of the libraries, and what must stay light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from house_tree import PACKAGE, ROOT, Module, imports, modules

LIBRARIES = {
    "flashinfer": ("kernels",),
    "triton": ("kernels",),
    "torch": ("kernels", "runtime/engine", "runtime/model"),
    "torch.distributed": ("runtime/model/parallel",),
    "safetensors": ("runtime/model",),
    "transformers": ("runtime/text",),
    "tokenizers": ("runtime/text",),
    "jinja2": ("runtime/text",),
    "huggingface_hub": ("hub",),
    "modelscope": ("hub",),
    "modelscope_hub": ("hub",),
    "filelock": ("hub",),
    "httpx": ("hub",),
    "fastapi": ("runtime/api", "supervisor/control"),
    "starlette": ("runtime/api", "supervisor/control"),
    "uvicorn": ("runtime/api", "supervisor/control"),
    "httptools": ("runtime/api",),
    "click": ("cli",),
    "matplotlib": ("bench",),
    "textual": ("tui",),
    "textual_serve": ("tui",),
    "aiohttp": ("tui",),
    "aiohttp_jinja2": ("tui",),
    "rich": ("cli", "tui"),
    "pynvml": ("hardware",),
    "platformdirs": ("paths",),
    "xgrammar": ("runtime/schedule/grammar",),
    "llguidance": ("runtime/schedule/grammar",),
    "multiprocessing": (),
    "requests": (),
}
"""Library -> the only rooms that know it."""

LATE_IMPORTS = {
    "appliance/__main__.py": "Ctrl-C is heard before the command line is loaded",
    "appliance/bench/plot.py": "matplotlib is optional",
    "appliance/cli/chat.py": "readline is not in every Python",
    "appliance/cli/doctor.py": "the hub's clients load only when a check needs them",
    "appliance/cli/main.py": "the first answer of the command line is quick",
    "appliance/cli/preflight.py": "weights that are made up need no hub",
    "appliance/cli/prepare.py": "a run of a folder does not need the hub",
    "appliance/cli/show.py": "the forms of calls load numpy, and --help does not wait",
    "appliance/cli/tune.py": "what measures loads numpy; --help does not wait",
    "appliance/cli/up.py": "the supervisor's control socket loads fastapi; --help does not wait",
    "appliance/cli/top.py": "one snapshot does not need the dashboard",
    "appliance/hardware.py": "NVML is optional",
    "appliance/hub/modelscope.py": "modelscope is optional",
    "appliance/hub/plan.py": "a hub's client loads when it is asked; --help does not wait",
    "appliance/hub/remove.py": "Hugging Face's client knows its own cache; --help does not wait",
    "appliance/kernels/cuda_source.py": "cuda-bindings is optional",
    "appliance/kernels/ops.py": "flashinfer and triton are optional",
    "appliance/runtime/launch.py": "a frontend never loads torch",
    "appliance/runtime/model/attention/select.py": "flashinfer is optional",
    "appliance/runtime/schedule/grammar/compile.py": "xgrammar loads torch, and is rarely needed",
}
"""Files that may import inside a function, each with its reason."""

LIGHT = (
    "cli", "client", "hub", "profiles", "supervisor", "tui", "bench", "runtime/config",
    "runtime/spec", "runtime/plan", "runtime/wire", "runtime/schedule", "runtime/api",
    "runtime/text", "runtime/launch",
)  # fmt: skip
HEAVY = ("torch", "triton", "flashinfer", "transformers.models")


def test_import_contract_holds() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_named_by_a_contract() -> None:
    """A room that no contract protects could be imported from anywhere on a higher floor."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    protected = {
        room
        for contract in config["contracts"]
        if contract["type"] == "protected"
        for room in contract["protected_modules"]
    }
    rooms = {_folder_or_file(p) for p in PACKAGE.iterdir()}
    rooms |= {f"runtime.{_folder_or_file(p)}" for p in (PACKAGE / "runtime").iterdir()}
    open_to_all = {"", "runtime", "runtime.", "__main__", "runtime.__main__", "errors"}
    missing = {
        room
        for room in rooms - open_to_all
        if not any(p.startswith(f"appliance.{room}") for p in protected)
    }
    assert not missing


def _folder_or_file(path: Path) -> str:
    if path.is_dir():
        return path.name if (path / "__init__.py").exists() else ""
    return path.stem if path.suffix == ".py" and path.stem != "__init__" else ""


def _stands_in(module: Module, rooms: tuple[str, ...]) -> bool:
    place = "/".join(module.name.split(".")[1:])
    return any(place == room or place.startswith(room + "/") for room in rooms)


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_room_per_library(library: str) -> None:
    strangers = [
        f"{module.path}:{found.line} imports {found.target}"
        for module in modules()
        if not _stands_in(module, LIBRARIES[library])
        for found in imports(module)
        if found.target == library or found.target.startswith(library + ".")
    ]
    assert not strangers


def test_imports_stand_at_the_top() -> None:
    late = {
        module.path
        for module in modules()
        for found in imports(module)
        if found.inside and module.path != "appliance/runtime/__main__.py"
    }
    assert late == set(LATE_IMPORTS)


def test_no_import_is_for_types_only() -> None:
    assert not [
        m.path for m in modules() if "typing.TYPE_CHECKING" in {i.target for i in imports(m)}
    ]


def _loaded_by(code: str) -> list[str]:
    """Names of HEAVY that a fresh interpreter holds after `code`, each with where it came in."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("HEAVY ")]


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_never_load_torch(room: str) -> None:
    place = "appliance." + room.replace("/", ".")
    names = [m.name for m in modules() if m.name == place or m.name.startswith(place + ".")]
    names = [n for n in names if not n.endswith("__main__")]
    assert names
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    for heavy in {HEAVY!r}:
        if heavy in sys.modules:
            print("HEAVY", heavy, "by", name)
"""
    assert not _loaded_by(code)


def test_shape_of_a_model_is_read_without_torch() -> None:
    code = f"""
import sys
from appliance.runtime.model.registry import FAMILIES, spec_of
for name in FAMILIES:
    spec_of({{
        "architectures": [name], "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8,
    }})
    for heavy in {HEAVY!r}:
        if heavy in sys.modules:
            print("HEAVY", heavy, "by", name)
"""
    assert not _loaded_by(code)


def test_help_loads_next_to_nothing() -> None:
    libraries = sorted({name.partition(".")[0] for name in LIBRARIES} - {"click"} | {"numpy"})
    code = f"""
import sys
from appliance.cli.main import run
run(["--help"])
for name in {libraries!r}:
    if name in sys.modules:
        print("HEAVY", name)
"""
    assert not _loaded_by(code)
