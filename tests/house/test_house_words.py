"""Words and constructs that do not stand in this house."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from house_tree import PACKAGE, ROOT, Module, modules, text_files

FOLDERS = (PACKAGE, ROOT / "training", ROOT / "benchmarks", ROOT / "tests")
ATTIC = re.compile(r"^(utils?|helpers?|misc|common)$")
ATTIC_ALLOWED = {"appliance/kernels/common.py"}
ARCHITECTURE = re.compile(r"For(CausalLM|ConditionalGeneration)$")
ARCHITECTURES_AT_HOME = ("appliance/runtime/model/families/", "appliance/runtime/model/registry.py")
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
RUNS_TEXT = {"eval", "exec", "compile"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
HOSTS = {
    "127.0.0.1", "localhost", "h", "x", "HOST", "host",
    "huggingface.co", "www.modelscope.ai", "www.modelscope.cn", "modelscope.cn",
    "www.apache.org", "download.pytorch.org", "flashinfer.ai", "www.nvidia.com",
}  # fmt: skip
"""Hosts a file may name, for people are sent there. A mirror, a registry or a machine of somebody's
is none of them."""


def _everywhere() -> list[Module]:
    return [module for folder in FOLDERS for module in modules(folder)]


def _where(module: Module, node: ast.AST) -> str:
    line: int = node.lineno  # type: ignore[attr-defined]
    return f"{module.path}:{line}"


def _called(node: ast.AST) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return ""


def test_no_attic() -> None:
    places = {
        part
        for module in _everywhere()
        if module.path not in ATTIC_ALLOWED
        for part in Path(module.path).with_suffix("").parts
    }
    assert not [place for place in places if ATTIC.match(place)]


def test_no_mixin_and_no_global() -> None:
    found = [
        _where(module, node)
        for module in _everywhere()
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.ClassDef) and node.name.endswith("Mixin"))
        or isinstance(node, ast.Global)
    ]
    assert not found


def test_nobody_changes_what_other_threads_make() -> None:
    """The umask is the process's: a folder that another thread made meanwhile could not be
    entered. A socket is bound, closed to others, and then listened on."""
    found = [
        _where(module, node)
        for module in modules(PACKAGE)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "umask"
    ]
    assert not found


def test_nothing_reads_or_runs_what_could_be_code() -> None:
    found = []
    for module in _everywhere():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                names = {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                names = set()
            if names & UNSAFE or _called(node) in RUNS_TEXT:
                found.append(_where(module, node))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "os.system"):
                found.append(_where(module, node))
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                found.append(_where(module, node.value))
    assert not found


def test_our_own_types_are_known_by_their_fields() -> None:
    """What a module gives by name is read with vars(); a type's field is written out."""
    found = [
        _where(module, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if _called(node) in BY_NAME
    ]
    assert not found


def test_architectures_are_named_by_their_family_only() -> None:
    found = [
        f"{_where(module, node)} {node.value}"
        for module in modules()
        if not module.path.startswith(ARCHITECTURES_AT_HOME)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and ARCHITECTURE.search(node.value)
    ]
    assert not found


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError\(\)")
    found = [
        f"{module.path}:{number}"
        for module in modules()
        for number, line in enumerate((ROOT / module.path).read_text().splitlines(), 1)
        if later.search(line)
    ]
    assert not found


def test_package_files_are_empty() -> None:
    """But the first: scripts say `appliance.Engine`, and nothing of it loads before they do."""
    first = PACKAGE / "__init__.py"
    assert not [p for p in PACKAGE.rglob("__init__.py") if p != first and p.read_text().strip()]


def test_every_module_says_what_it_is() -> None:
    silent = [
        module.path
        for module in modules()
        if not module.path.endswith("__init__.py") and not ast.get_docstring(module.tree)
    ]
    assert not silent


def test_the_tree_names_no_machine_of_ours() -> None:
    places = re.compile(r"(?<![\w.~}])/(work|root|opt)/|/home/(?!x\b|appliance\b)\w")
    url = re.compile(r"https?://([A-Za-z0-9.-]+)")
    found = []
    for path in text_files():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            hosts = set(url.findall(line)) - HOSTS
            if hosts or places.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}")
    assert not found
