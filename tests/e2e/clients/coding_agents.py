"""Claude Code and Codex, the programs themselves, against this server.

    npm install --prefix tests/e2e/clients --ignore-scripts --no-package-lock
    node tests/e2e/clients/node_modules/@anthropic-ai/claude-code/install.cjs
    python tests/e2e/clients/coding_agents.py

Their prompts take 33,000 and 11,000 tokens of the embedded model's small vocabulary, so two things
serve them: a model of made-up weights with room for 131,072 tokens, through `appliance up`, for the
prefix cache; and scripted.py, whose engine asks for a tool, for the way to the tool and back.
Prints a line for each check; ends with 1 when one failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from stand import Stand, until  # noqa: E402

EMBEDDED = HERE.parents[2] / "appliance" / "default_model"
CONTEXT = 1 << 17
SECRET = "the heron is in the reeds"
QUESTION = "What does note.txt say?"
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 128, "max_position_embeddings": CONTEXT, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True, "vocab_size": 3072,
    "bos_token_id": 1, "eos_token_id": [4, 2], "pad_token_id": 0, "torch_dtype": "bfloat16",
}  # fmt: skip

PROGRAMS = HERE / "node_modules" / ".bin"
QUIET = {
    "DISABLE_TELEMETRY": "1", "DISABLE_AUTOUPDATER": "1", "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "NO_COLOR": "1",
}  # fmt: skip
CODEX = """model = "default"
model_provider = "appliance"
model_context_window = {context}
check_for_update_on_startup = false
[model_providers.appliance]
name = "appliance"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "APPLIANCE_KEY"
[analytics]
enabled = false
"""


class Checks:
    def __init__(self) -> None:
        self.failed = 0

    def tell(self, agent: str, what: str, passes: bool, more: object = "") -> None:
        self.failed += not passes
        print(f"{agent}: {what}: {'passes' if passes else 'FAILS'} {more}".rstrip(), flush=True)


class Agents:
    """Both programs, with homes and a work folder of their own."""

    def __init__(self, home: Path) -> None:
        self.home, self.work = home, home / "work"
        self.work.mkdir()
        self.note = self.work / "note.txt"
        self.note.write_text(SECRET + "\n")

    def claude(self, url: str, *words: str) -> list[dict[str, Any]]:
        environment = {
            "ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_MODEL": "default",
            "ANTHROPIC_SMALL_FAST_MODEL": "default",
        }  # fmt: skip
        form = ("--output-format", "stream-json", "--verbose")
        return self._run(environment, "claude", "-p", *words, *form)

    def codex(self, url: str, *words: str) -> list[dict[str, Any]]:
        folder = self.home / ".codex"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(CODEX.format(url=url, context=CONTEXT))
        environment = {"CODEX_HOME": str(folder), "APPLIANCE_KEY": "none"}
        said = ("exec", "--skip-git-repo-check", "--json", *words)
        return self._run(environment, "codex", *said)

    def _run(self, environment: dict[str, str], program: str, *words: str) -> list[dict[str, Any]]:
        """The events it printed."""
        done = subprocess.run(
            [str(PROGRAMS / program), *words],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)} | QUIET | environment,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def long_model(folder: Path) -> Path:
    """Of made-up weights, which `--load-format dummy` makes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)
    return folder


@contextmanager
def scripted(name: str, arguments: dict[str, str]) -> Iterator[str]:
    """scripted.py asking for this tool; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = json.dumps({"name": name, "arguments": arguments})
    words = [sys.executable, str(HERE / "scripted.py"), "--port", str(port), "--call", call]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def connected() -> bool:
        try:
            told = httpx.get(f"{url}/metrics").text
        except httpx.TransportError:
            return False
        return re.search(r"^appliance_engines_connected\S* 1", told, re.MULTILINE) is not None

    try:
        until(connected, "the scripted engine is connected")
        yield url
    finally:
        process.terminate()
        process.wait()


def claude_ended(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next((e for e in events if e["type"] == "result"), {})


def codex_usage(events: list[dict[str, Any]]) -> dict[str, int]:
    return next((e["usage"] for e in events if e["type"] == "turn.completed"), {})


def prefix_cache(checks: Checks, agents: Agents) -> None:
    with Stand(str(long_model(agents.home / "long")), "--load-format", "dummy") as stand:
        url = stand.url
        for what in ("a prompt", "the same again"):
            ended = claude_ended(agents.claude(url, "Say hello"))
            usage = ended.get("usage", {})
            new, cached = usage.get("input_tokens", 0), usage.get("cache_read_input_tokens", 0)
            right = cached > 30_000 if what == "the same again" else new > 30_000
            more = (
                f"{new} tokens new, {cached} cached, first event {ended.get('ttft_stream_ms')} ms"
            )
            checks.tell("claude", what, ended.get("is_error") is False and right, more)
        for what in ("a prompt", "the same again"):
            usage = codex_usage(agents.codex(url, "Say hello"))
            read, cached = usage.get("input_tokens", 0), usage.get("cached_input_tokens", 0)
            right = cached > 10_000 if what == "the same again" else read > 10_000
            checks.tell("codex", what, right, f"{read} tokens, {cached} of them cached")


def too_long(checks: Checks, agents: Agents) -> None:
    with Stand() as stand:
        ended = claude_ended(agents.claude(stand.url, "Say hello"))
        said = ended.get("result", "")
        checks.tell("claude", "a prompt too long", said.startswith("Prompt is too long"), said)
        events = agents.codex(stand.url, "Say hello")
        said = next((e["message"] for e in events if e["type"] == "error"), "")
        checks.tell("codex", "a prompt too long", "ran out of room" in said, said)


def tool_calls(checks: Checks, agents: Agents) -> None:
    with scripted("Read", {"file_path": str(agents.note)}) as url:
        ended = claude_ended(agents.claude(url, QUESTION, "--allowedTools", "Read"))
        said = ended.get("result", "")
        right = SECRET in said and ended.get("num_turns") == 2
        checks.tell("claude", "Read and its result", right, repr(said))
    with scripted("exec_command", {"cmd": "cat note.txt"}) as url:
        events = agents.codex(url, "--dangerously-bypass-approvals-and-sandbox", QUESTION)
        items = [e["item"] for e in events if e["type"] == "item.completed"]
        said = [i["text"] for i in items if i["type"] == "agent_message"]
        ran = [i["exit_code"] for i in items if i["type"] == "command_execution"]
        right = ran == [0] and bool(said) and SECRET in said[-1]
        checks.tell("codex", "exec_command and its result", right, repr(said[-1:]))


def main() -> None:
    for program in ("claude", "codex"):
        told = subprocess.run(
            [str(PROGRAMS / program), "--version"], capture_output=True, text=True
        )
        print(told.stdout.strip())
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="agents") as folder:
        agents = Agents(Path(folder))
        for part in (tool_calls, too_long, prefix_cache):
            part(checks, agents)
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
