"""appliance connect: what a client needs to talk to the run here; printed, or put into its file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

import click

from appliance import address, paths
from appliance.cli import client_files
from appliance.cli.client_files import Place
from appliance.cli.output import Output, nearest
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import NotRunningError, UsageError

_DEFAULT_URL = "http://127.0.0.1:8000"


def _openai(at: Place) -> str:
    return f'''import os

from openai import OpenAI

client = OpenAI(base_url="{at.url}/v1", api_key=os.environ.get("APPLIANCE_API_KEY", "none"))
answer = client.chat.completions.create(
    model="{at.model}", messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)'''


def _openai_on_a_socket(path: str, model: str) -> str:
    return f'''import os

import httpx
from openai import OpenAI

client = OpenAI(
    base_url="{address.LOCAL}/v1",
    api_key=os.environ.get("APPLIANCE_API_KEY", "none"),
    http_client=httpx.Client(transport=httpx.HTTPTransport(uds={path!r})),
)
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)'''


def _langchain_on_a_socket(path: str, model: str) -> str:
    return f'''import os

import httpx
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    base_url="{address.LOCAL}/v1",
    api_key=os.environ.get("APPLIANCE_API_KEY", "none"),
    http_client=httpx.Client(transport=httpx.HTTPTransport(uds={path!r})),
    model="{model}",
)
print(llm.invoke("Hello!").content)'''


_ON_A_SOCKET = {"openai": _openai_on_a_socket, "langchain": _langchain_on_a_socket}
"""Clients that can be told of a Unix socket."""


def _bridge(path: str) -> str:
    """A command that brings a Unix socket to the port where clients look by default."""
    place = shlex.quote(f"UNIX-CONNECT:{path}")
    return f"socat TCP-LISTEN:8000,bind=127.0.0.1,reuseaddr,fork {place}"


def _snippet(client: str, at: Place) -> str:
    path = address.socket_of(at.url)
    if path is None:
        return CLIENTS[client][1](at)
    if client in _ON_A_SOCKET:
        return _ON_A_SOCKET[client](path, at.model)
    bridged = CLIENTS[client][1](at._replace(url=_DEFAULT_URL))
    return (
        "# This client knows ports alone. Bring the run's Unix socket to one first:\n"
        f"#   {_bridge(path)}\n{bridged}"
    )


def _langchain(at: Place) -> str:
    return f'''import os

from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    base_url="{at.url}/v1",
    api_key=os.environ.get("APPLIANCE_API_KEY", "none"),
    model="{at.model}",
)
print(llm.invoke("Hello!").content)'''


def _litellm(at: Place) -> str:
    return f'''import os

from litellm import completion

answer = completion(
    model="hosted_vllm/{at.model}",
    api_base="{at.url}/v1",
    api_key=os.environ.get("APPLIANCE_API_KEY", "none"),
    messages=[{{"role": "user", "content": "Hello!"}}],
)
print(answer.choices[0].message.content)'''


def _open_webui(at: Place) -> str:
    return f"""docker run -d --network host -e PORT=3000 \\
  -e OPENAI_API_BASE_URL={at.url}/v1 \\
  -e OPENAI_API_KEY="${{APPLIANCE_API_KEY:-none}}" \\
  -v open-webui:/app/backend/data --name open-webui ghcr.io/open-webui/open-webui:main"""


def _continue(at: Place) -> str:
    return f"""# ~/.continue/config.yaml
name: appliance
version: 1.0.0
schema: v1
models:
  - name: {at.model}
    provider: openai
    model: {at.model}
    apiBase: {at.url}/v1
    apiKey: none
    roles: [chat, edit, apply]"""


def _claude_code(at: Place) -> str:
    return f"""export ANTHROPIC_BASE_URL={at.url}
export ANTHROPIC_AUTH_TOKEN="${{APPLIANCE_API_KEY:-none}}"
export ANTHROPIC_MODEL={at.model}
export ANTHROPIC_SMALL_FAST_MODEL={at.model}
claude"""


def _aider(at: Place) -> str:
    return f"""export OPENAI_API_BASE={at.url}/v1
export OPENAI_API_KEY="${{APPLIANCE_API_KEY:-none}}"
aider --model openai/{at.model}"""


def _codex(at: Place) -> str:
    return f"""# ~/.codex/appliance.config.toml, read by: codex --profile appliance
model = "{at.model}"
model_provider = "appliance"

[model_providers.appliance]
name = "appliance"
base_url = "{at.url}/v1"
env_key = "APPLIANCE_API_KEY"   # any text where the server asks for no key
wire_api = "responses\""""


CLIENTS: dict[str, tuple[str, Callable[[Place], str]]] = {
    "openai": ("The OpenAI library for Python", _openai),
    "langchain": ("LangChain", _langchain),
    "litellm": ("LiteLLM", _litellm),
    "open-webui": ("Open WebUI, a chat in the browser", _open_webui),
    "continue": ("Continue, in an editor", _continue),
    "claude-code": ("Claude Code, through the Anthropic dialect", _claude_code),
    "aider": ("Aider, in a terminal", _aider),
    "codex": ("Codex, through the Responses dialect", _codex),
}


@click.command()
@click.argument("client", required=False)
@click.option("--name", default="default", help="The run to point at.")
@click.option("--url", help="Another server than the run here.")
@click.option("--model", help="Name of the model; `default` always answers.")
@click.option("--print", "only_print", is_flag=True, help="Print it; the usual.")
@click.option("--write", is_flag=True, help="Change the client's file; shows how, and asks.")
@click.pass_obj
def connect(
    out: Output,
    /,
    client: str | None,
    name: str,
    url: str | None,
    model: str | None,
    only_print: bool,
    write: bool,
) -> None:
    """What CLIENT needs to talk to the run here; without one, the list of clients."""
    if write and (only_print or client is None):
        raise UsageError("--write is for one client, and not with --print.", "Leave one out.")
    if client is None:
        text = "\n".join(f"{word:<12} {what}" for word, (what, _) in CLIENTS.items())
        data = [{"client": word, "what": what} for word, (what, _) in CLIENTS.items()]
        out.result(text, {"schema": "appliance.clients/1", "clients": data})
        return
    if client not in CLIENTS:
        raise UsageError(
            f"no client '{client}'.{nearest(client, list(CLIENTS))}",
            f"Known: {', '.join(CLIENTS)}. Any other OpenAI client takes the address "
            f"{_DEFAULT_URL}/v1 and any key.",
        )
    base = (address.normal(url) if url else _url_of(out, name)).rstrip("/").removesuffix("/v1")
    at = Place(base, model or "default", bool(os.environ.get("APPLIANCE_API_KEY")))
    if write:
        _write(out, client, at)
        return
    snippet = _snippet(client, at)
    told = {"url": at.url, "model": at.model, "client": client, "text": snippet}
    out.result(snippet, {"schema": "appliance.connect/1", **told})


def _write(out: Output, client: str, at: Place) -> None:
    """Shows what would change, asks, keeps what was."""
    path = address.socket_of(at.url)
    if path is not None:
        raise UsageError(
            f"{client} knows ports alone, and the run listens on a Unix socket.",
            f"{_bridge(path)}\nappliance connect {client} --write --url {_DEFAULT_URL}",
        )
    target = client_files.target_of(client, at)
    if target is None:
        able = [word for word in CLIENTS if client_files.target_of(word, at) is not None]
        raise UsageError(
            f"{client} is a library: a program says itself where its server is.",
            f"appliance connect {client}     prints the lines\n--write is for {', '.join(able)}.",
        )
    old, new = client_files.plan(target)
    told = {
        "schema": "appliance.connect-write/1",
        "client": client,
        "path": str(target.path),
        "diff": client_files.diff_of(target.path, old, new),
        "written": False,
        "backup": None,
    }
    if new == old:
        out.result(f"{target.path} says so already.", told)
        return
    out.note(str(told["diff"]))
    if not out.confirm(f"Write {target.path}?"):
        raise UsageError(
            f"{target.path} was not changed: nobody agreed to it.", "-y writes without asking."
        )
    backup = client_files.write(target.path, old, new)
    told |= {"written": True, "backup": str(backup) if backup else None}
    was = f" (what it was: {backup.name})" if backup else ""
    out.result(f"Wrote {target.path}{was}\n  then   {target.then}", told)


def _url_of(out: Output, name: str) -> str:
    try:
        status = Client(paths.control_socket(run_folder(name)), timeout=3.0).status()
    except NotRunningError:
        others = address.listening(paths.control_sockets())
        if name == "default" and len(others) == 1:
            out.note(f"For the run that is up, {others[0]}.")
            return _url_of(out, others[0])
        said = f"{', '.join(others)} run here: choose one with --name" if others else "Nothing runs"
        out.note(f"{said}; this is for where `appliance up` serves when not told otherwise.")
        return _DEFAULT_URL
    return status.url or _DEFAULT_URL
