"""Takes every wrong turn with the real command line and writes down what it said.

    python docs/write_wrong_turns.py

A hub, a driver and a full disk are stand-ins of the tests; numbers that differ from one machine to
the next (ports, processes, seconds) are written as one. A test compares the page with what this
would write.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests/cli"))
sys.path.insert(0, str(ROOT / "tests/hub"))

from cli_stage import write_tiny  # noqa: E402
from fakehub import FakeHub, Repo, tiny_model  # noqa: E402
from on_terminal import on_terminal  # noqa: E402
from test_hardware import FakeNvml  # noqa: E402

from appliance.cli import conditions, prepare, start, toolkit  # noqa: E402
from appliance.cli import pull as pulling  # noqa: E402
from appliance.cli.main import run  # noqa: E402
from appliance.hardware import HardwareSnapshot, detect  # noqa: E402
from appliance.hub import plan  # noqa: E402
from appliance.hub.source import Patience  # noqa: E402
from appliance.profiles import pick  # noqa: E402
from appliance.supervisor.claim import bind  # noqa: E402

PAGE = Path(__file__).parent / "wrong-turns.md"
MACHINE = HardwareSnapshot(8, 64 << 30, 60 << 30)
TINY = ["--load-format", "dummy"]
LARGE = {"hidden_size": 16384, "num_hidden_layers": 80, "intermediate_size": 53248}
_DRIVE = ROOT / "tests/cli/drive_up.py"
_HEAD = """<!-- written by docs/write_wrong_turns.py; edit the code instead -->

# Wrong turns

What is said when something goes wrong, word for word. Each of these was done, not made up: a script
takes every turn again, and a test compares. The first line says what happened, `why` the
particulars, `fix` what to type. Each code is in [Errors and alerts](reference/errors.md), and in
`appliance explain CODE`.
"""


class Place:
    """A home of its own with a hub beside it, and what the hub and the machine are."""

    def __init__(self, home: Path, hub: FakeHub) -> None:
        self.home, self.hub = home, hub
        self.tiny = write_tiny(home / "tiny")
        self.ports: dict[int, int] = {}
        hub.hf["org/tiny"] = Repo(tiny_model())
        hub.hf["org/gated"] = Repo(tiny_model(), gated=True)

    def typed(self, *words: str) -> str:
        """The command, what it said, and its exit code unless that is 0."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = run(words)
        return self.shown(words, said.getvalue(), code)

    def interrupted(self, words: list[str], command: list[str], at: str) -> str:
        """The command on a terminal, Ctrl-C once it shows `at`, and what it said then."""
        with on_terminal(command) as terminal:
            before = len(terminal.sees(at))
            terminal.keys("\x03")
            code = terminal.left()
            text = terminal.text[:before] + "\r^C\r\n" + terminal.text[before:]
        return self.shown(words, "\n".join(seen_lines(text)) + "\n", code)

    def shown(self, words: tuple[str, ...] | list[str], said: str, code: int) -> str:
        command = " ".join(["$ appliance", *words])
        end = f"(exit code {code})\n" if code else ""
        return self._same_everywhere(f"{command}\n{said}{end}")

    def _same_everywhere(self, text: str) -> str:
        text = text.replace(self.hub.url, "https://huggingface.co").replace(str(self.home), "~")
        for port, shown in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(shown), text)
        for pattern, shown in _ONE_OF:
            text = re.sub(pattern, shown, text)
        return text


def seen_lines(text: str) -> list[str]:
    """What stays on a terminal: no line that was drawn over and no bar; nor what a busy machine
    says otherwise: phases, told of where they took their time, and how each process ended."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\r\n")]
    return [line for line in lines if line and not _PASSING.match(line)]


_PASSING = re.compile(
    r"  (total|model-)|(Imported|Loaded|Planned|Captured|Warmed) |\^C\S"
    r"|frontends finished|\d+ (frontend|engine)|engine \d.* did not end"
)
_ONE_OF = (
    (r"//127\.0\.0\.1:\d{4,5}", "//127.0.0.1:8000"),
    (r"pid \d+ \([^)]*\)", "pid 4121 (python)"),
    (r"kill \d+", "kill 4121"),
    (r"--port \d{4,5}( +is free)", r"--port 8001\1"),
    (r"[Pp]ort \d{4,5} (is taken )?instead", r"Port 8001 \1instead"),
    (r"[\d.]+ GB free", "512.0 GB free"),
    (r"workspace [\d.]+ GB", "workspace 10.8 GB"),
    (r"at most [\d.]+ billion", "at most 30.7 billion"),
    (r"\b\d+\.\d ?s\b", "0.1 s"),
    (r"\d+\.\d+\.\d+(\+\w+)? for CUDA", "2.13.0 for CUDA"),
    (r"~/[\w/.-]+\.log", "~/.local/state/appliance/logs/default.log"),
)
"""What differs from one machine and one time to the next, or moves with the rules of the memory
plan, and what stands for it."""


@contextmanager
def place() -> Iterator[Place]:
    home = Path(tempfile.mkdtemp(prefix="apl"))
    own = {f"APPLIANCE_{n}_DIR": str(home / n.lower()) for n in ("STATE", "RUNTIME", "CONFIG")}
    own |= {"APPLIANCE_CACHE_DIR": str(home / "cache"), "HF_HOME": str(home / "hf")}
    own |= {"MODELSCOPE_CACHE": str(home / "ms"), "NO_COLOR": "1", "HF_HUB_DISABLE_XET": "1"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "APPLIANCE_"))}
    quick = Patience(stall_s=1.0, connect_s=2.0, attempts=2, questions=1, first_wait_s=0.01)
    with FakeHub() as hub, ExitStack() as stack:
        own["HF_ENDPOINT"] = own["MODELSCOPE_ENDPOINT"] = hub.url
        stack.enter_context(mock.patch.dict(os.environ, kept | own, clear=True))
        for room in (prepare, pick):
            stack.enter_context(mock.patch.object(room, "detect", lambda: MACHINE))
        stack.enter_context(mock.patch.object(pulling, "Patience", lambda: quick))
        try:
            yield Place(home, hub)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _a_disk_too_small(p: Place) -> str:
    with mock.patch.object(plan, "free_bytes", lambda path: 100_000):
        return p.typed("pull", "org/tiny", "--source", "hf")


def _bytes_that_are_wrong(p: Place) -> str:
    p.hub.fault("model-00001", corrupt=True, times=99)
    said = p.typed("pull", "org/tiny", "--source", "hf", "--no-progress")
    p.hub.faults.clear()
    return said


def _nvml(driver: str, cuda: int) -> FakeNvml:
    """A driver with one H100."""
    fake = FakeNvml(set())
    answers: dict[str, Any] = {
        "nvmlSystemGetDriverVersion": lambda: driver,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
    }
    for name, answer in answers.items():
        setattr(fake, name, answer)
    return fake


@contextmanager
def _driver(version: str, cuda: int) -> Iterator[None]:
    with (
        mock.patch.dict(sys.modules, {"pynvml": _nvml(version, cuda)}),
        mock.patch.object(prepare, "detect", detect),
        mock.patch.object(conditions, "torch_cuda", lambda: "13.0"),
        mock.patch.object(toolkit, "install", lambda: "pip install"),
        mock.patch.object(toolkit, "_system", lambda: {"ID": "ubuntu"}),
        mock.patch.object(toolkit, "_in_container", lambda: False),
    ):
        yield


def _an_old_driver(p: Place) -> str:
    with _driver("535.183.01", 12020):
        return p.typed("up", str(p.tiny), *TINY)


def _a_model_too_big(p: Place) -> str:
    folder = p.home / "large"
    folder.mkdir()
    config = json.loads((p.tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | LARGE))
    with _driver("580.95.05", 13000):
        return p.typed("up", str(folder), *TINY)


def _a_port_that_is_taken(p: Place) -> str:
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    p.ports[port] = 8000
    said = p.typed("up", str(p.tiny), *TINY, "--port", str(port))
    taken.close()
    return said


def _a_run_of_that_name(p: Place) -> str:
    up = ["up", str(p.tiny), *TINY, "--port", "0", "-d", "--wait=120"]
    file = p.home / "keys.txt"
    file.write_text("k" * 40 + "\n")
    file.chmod(0o600)
    first = p.typed(*up, "--api-key-file", str(file))
    assert "(ready)" in first, first
    return p.typed("up", str(p.tiny), *TINY)


def _a_wrong_key(p: Place) -> str:
    return p.typed("run", "hello")


def _a_prompt_too_long(p: Place) -> str:
    key = (p.home / "keys.txt").read_text().strip()
    with mock.patch.dict(os.environ, {"APPLIANCE_API_KEY": key}):
        said = p.typed("run", "hello " * 600)
    p.typed("down", "--now")
    return re.sub(r"(hello ){600}", "hello hello hello …", said)


def _a_damaged_model(p: Place) -> str:
    folder = p.home / "damaged"
    shutil.copytree(p.tiny, folder)
    (folder / "tokenizer.json").write_text("{")
    said = p.typed("up", str(folder), *TINY, "--port", "0", "-d", "--wait")
    # how far the engine has come by then is the machine's affair
    return re.sub(rf"^({'|'.join(start.DONE.values())}) .*\n", "", said, flags=re.MULTILINE)


def _stopped_while(phase: str) -> Callable[[Place], str]:
    def stop(p: Place) -> str:
        told = json.dumps({"phases": ["import", phase], "hang_in_phase": True})
        words = ["up", str(p.tiny), *TINY, "--port", "0"]
        return p.interrupted(words, [sys.executable, str(_DRIVE), told, *words], f"{phase} 50%")

    return stop


def _an_engine_that_dies(p: Place) -> str:
    told = json.dumps({"phases": ["load"], "print": ["RuntimeError: no such kernel"], "exit": 70})
    words = ["up", str(p.tiny), *TINY, "--port", "0"]
    with on_terminal([sys.executable, str(_DRIVE), told, *words]) as terminal:
        code = terminal.left()
    return p.shown(words, "\n".join(seen_lines(terminal.text)) + "\n", code)


def _a_pull_that_is_stopped(p: Place) -> str:
    p.hub.hf["org/slow"] = Repo(tiny_model(shards=1, floats=750_000))
    p.hub.fault("model-00001-of-00001", rate=400_000)
    words = ["pull", "org/slow", "--source", "hf"]
    said = p.interrupted(words, [sys.executable, str(_DRIVE), "{}", *words], "MB/s")
    p.hub.faults.clear()
    return re.sub(r"Stopped at [\d.]+ MB", "Stopped at 1.2 MB", said)


def _of(*words: str) -> Callable[[Place], str]:
    return lambda p: p.typed(*(word.replace("~", str(p.home)) for word in words))


class Turn(NamedTuple):
    title: str
    take: Callable[[Place], str]


TURNS = {
    "Words and values": (
        Turn("A command that is none", _of("pul", "org/tiny")),
        Turn("An option that is none", _of("up", "--prot", "9000")),
        Turn("A setting that is none", _of("up", "--set", "engine.tpp=2")),
        Turn("A value that cannot be", _of("up", "~/tiny", *TINY, "--tp", "3")),
        Turn("A profile that is none", _of("up", "~/tiny", *TINY, "--profile", "h100x1-bf61")),
    ),
    "The model": (
        Turn("It is not on this disk", _of("up", "org/tiny")),
        Turn("No hub has it", _of("pull", "org/nothing", "--source", "hf")),
        Turn("It stands behind a gate", _of("pull", "org/gated", "--source", "hf")),
        Turn("The disk is too small", _a_disk_too_small),
        Turn(
            "The hub cannot be reached",
            _of("pull", "org/tiny", "--source", "hf", "--endpoint", "http://127.0.0.1:9"),
        ),
        Turn("The bytes that came are not the hub's", _bytes_that_are_wrong),
        Turn("Ctrl-C while it is pulled", _a_pull_that_is_stopped),
        Turn("A file of it is damaged", _a_damaged_model),
    ),
    "The machine": (
        Turn("The model is too big", _a_model_too_big),
        Turn("The context is too long", _of("up", "~/tiny", *TINY, "--context", "1000000")),
        Turn("The driver is too old", _an_old_driver),
        Turn("There is no GPU", _of("up", "~/tiny", *TINY, "--profile", "h100x1-bf16")),
    ),
    "The door": (
        Turn("The port is taken", _a_port_that_is_taken),
        Turn("Anybody could come in", _of("up", "~/tiny", *TINY, "--host", "0.0.0.0")),
        Turn("A run of that name is up", _a_run_of_that_name),
        Turn("No key, or a wrong one", _a_wrong_key),
        Turn("A prompt longer than the context", _a_prompt_too_long),
        Turn("Nothing runs", _of("chat", "hello")),
    ),
    "The start": (
        Turn("Ctrl-C while the model is loaded", _stopped_while("load")),
        Turn("Ctrl-C in the last phase", _stopped_while("warmup")),
        Turn("The engine dies each time", _an_engine_that_dies),
    ),
}


def page() -> str:
    parts = [_HEAD]
    with place() as where:
        for subject, turns in TURNS.items():
            parts.append(f"\n## {subject}\n")
            for turn in turns:
                parts.append(f"\n### {turn.title}\n\n```text\n{turn.take(where)}```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
