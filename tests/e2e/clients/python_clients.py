"""Agent frameworks for Python against a running embedded model.

    pip install "pydantic-ai-slim[openai,anthropic]==2.68.0" openai-agents==0.24.0
    pip install instructor==1.17.0 llm==0.36 dspy==3.4.1 haystack-ai==3.4.0
    appliance up --port 8000 -d --wait
    python tests/e2e/clients/python_clients.py http://127.0.0.1:8000

The two installs belong into two environments, because they want different majors of openai. The
script is run in each; libraries that are not installed are told and left out. Prints a line for
each call; ends with 1 when one of them failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SUM = "What is 37 + 45?"
WEATHER = "What is the weather in Berlin?"
PERSON = "Answer in JSON with name and age: Anna is 7."

Call = tuple[str, Callable[[], Any], Callable[[Any], bool]]


class Weather:
    """A tool that remembers what it was asked."""

    def __init__(self) -> None:
        self.cities: list[str] = []

    def get_weather(self, city: str) -> str:
        """Weather of a city"""
        self.cities.append(city)
        return "17 degrees, rain"


def adds(text: Any) -> bool:
    return "82" in str(text)


def person() -> Any:
    return import_module("pydantic").create_model("Person", name=(str, ...), age=(int, ...))


def anna(got: Any) -> bool:
    found = got if isinstance(got, dict) else {"name": got.name, "age": got.age}
    return bool(found == {"name": "Anna", "age": 7})


def instructor(url: str) -> Iterator[Call]:
    library, openai = import_module("instructor"), import_module("openai")
    messages = [{"role": "user", "content": PERSON}]
    asked = {"model": "default", "messages": messages, "max_retries": 0, "temperature": 0}
    plain = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
    for mode in ("TOOLS", "JSON", "JSON_SCHEMA"):
        client = library.from_openai(plain, mode=library.Mode[mode])
        yield mode, lambda c=client: c.create(response_model=person(), **asked), anna
    client = library.from_openai(plain, mode=library.Mode.JSON_SCHEMA)
    yield (
        "create_partial",
        lambda: list(client.create_partial(response_model=person(), **asked))[-1],
        anna,
    )


def pydantic_ai(url: str) -> Iterator[Call]:
    agent = import_module("pydantic_ai").Agent
    openai = import_module("pydantic_ai.models.openai")
    anthropic = import_module("pydantic_ai.models.anthropic")
    made_by_openai = import_module("pydantic_ai.providers.openai").OpenAIProvider(
        base_url=f"{url}/v1", api_key="-"
    )
    made_by_anthropic = import_module("pydantic_ai.providers.anthropic").AnthropicProvider(
        base_url=url, api_key="-"
    )
    native = import_module("pydantic_ai").NativeOutput
    settings = {"temperature": 0}
    for name, model in (
        ("chat", openai.OpenAIChatModel("default", provider=made_by_openai)),
        ("responses", openai.OpenAIResponsesModel("default", provider=made_by_openai)),
        ("messages", anthropic.AnthropicModel("default", provider=made_by_anthropic)),
    ):
        weather = Weather()
        plain = agent(model, model_settings=settings)
        tools = agent(model, model_settings=settings, tools=[weather.get_weather])

        async def streamed(plain: Any = plain) -> str:
            async with plain.run_stream(SUM) as run:
                return "".join([t async for t in run.stream_text(delta=True)])

        def called(tools: Any = tools, weather: Weather = weather) -> Any:
            return tools.run_sync(WEATHER).output, weather.cities

        yield f"{name}: run", lambda a=plain: a.run_sync(SUM).output, adds
        yield f"{name}: run_stream", lambda s=streamed: asyncio.run(s()), adds
        yield f"{name}: a tool and its result", called, lambda got: got[1] == ["Berlin"]
    typed = agent(
        openai.OpenAIChatModel("default", provider=made_by_openai),
        output_type=native(person()),
        model_settings=settings,
    )
    yield "chat: NativeOutput", lambda: typed.run_sync(PERSON).output, anna


def openai_agents(url: str) -> Iterator[Call]:
    agents, openai = import_module("agents"), import_module("openai")
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
    settings = agents.ModelSettings(temperature=0)
    loop = asyncio.Runner()  # one for all calls: the client keeps its connections
    for name, kind in (
        ("chat", agents.OpenAIChatCompletionsModel),
        ("responses", agents.OpenAIResponsesModel),
    ):
        model, weather = kind(model="default", openai_client=client), Weather()
        plain = agents.Agent(name="a", model=model, model_settings=settings)
        tools = agents.Agent(
            name="a", model=model, model_settings=settings,
            tools=[agents.function_tool(weather.get_weather)],
        )  # fmt: skip

        async def asked(plain: Any = plain) -> str:
            run = agents.Runner.run_streamed(plain, SUM)
            async for _ in run.stream_events():
                pass
            return str(run.final_output)

        async def called(tools: Any = tools, weather: Weather = weather) -> Any:
            return (await agents.Runner.run(tools, WEATHER)).final_output, weather.cities

        yield f"{name}: run_streamed", lambda a=asked: loop.run(a()), adds
        yield (
            f"{name}: a tool and its result",
            lambda c=called: loop.run(c()),
            lambda got: got[1] == ["Berlin"],
        )


def llm(url: str) -> Iterator[Call]:
    def run(*words: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            told = f"- model_id: here\n  model_name: default\n  api_base: {url}/v1\n"
            told += "  supports_tools: true\n  supports_schema: true\n  api_key_name: none\n"
            (Path(folder) / "extra-openai-models.yaml").write_text(told)
            (Path(folder) / "keys.json").write_text('{"none": "-"}')
            done = subprocess.run(
                [str(Path(sys.executable).parent / "llm"), "-m", "here", *words],
                env=os.environ | {"LLM_USER_PATH": folder},
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout + done.stderr

    plain = ("-o", "temperature", "0")
    yield "llm, streamed", lambda: run(*plain, SUM), adds
    yield "llm --no-stream", lambda: run("--no-stream", *plain, SUM), adds
    yield "llm --schema", lambda: json.loads(run("--schema", "name, age int", *plain, PERSON)), anna
    code = 'def get_weather(city: str) -> str:\n    "Weather of a city"\n    return city[::-1]\n'
    yield (
        "llm --functions",
        lambda: run("--functions", code, "--td", *plain, WEATHER),
        lambda told: "nilreB" in told,
    )


def dspy(url: str) -> Iterator[Call]:
    library = import_module("dspy")
    told = {"api_base": f"{url}/v1", "api_key": "-", "temperature": 0, "cache": False}
    chat = library.LM("openai/default", **told)
    text = library.LM("text-completion-openai/default", model_type="text", max_tokens=8, **told)
    yield "LM", lambda: chat(SUM)[0], adds
    yield "LM, text", lambda: text("Once upon a time")[0], bool


def haystack(url: str) -> Iterator[Call]:
    chat = import_module("haystack.components.generators.chat").OpenAIChatGenerator
    classes = import_module("haystack.dataclasses")
    secret = import_module("haystack.utils").Secret.from_token("-")
    told = {"api_base_url": f"{url}/v1", "api_key": secret, "model": "default"}
    plain = chat(**told, generation_kwargs={"temperature": 0})
    said: list[str] = []
    stream = chat(
        **told,
        generation_kwargs={"temperature": 0},
        streaming_callback=lambda chunk: said.append(chunk.content),
    )
    ask = [classes.ChatMessage.from_user(SUM)]
    yield "run", lambda: plain.run(ask)["replies"][0].text, adds
    yield "run, streamed", lambda: (stream.run(ask), "".join(said))[1], adds
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = import_module("haystack.tools").Tool(
        "get_weather", "Weather of a city", city, function=lambda city: "rain"
    )
    weather = [classes.ChatMessage.from_user(WEATHER)]
    yield (
        "a tool",
        lambda: plain.run(weather, tools=[tool])["replies"][0].tool_calls[0].arguments,
        lambda got: got == {"city": "Berlin"},
    )


LIBRARIES = {
    "instructor": instructor,
    "pydantic-ai-slim": pydantic_ai,
    "openai-agents": openai_agents,
    "llm": llm,
    "dspy": dspy,
    "haystack-ai": haystack,
}


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    failed = 0
    for name, calls in LIBRARIES.items():
        try:
            told = f"{name} {version(name)}"
        except PackageNotFoundError:
            print(f"{name}: not installed")
            continue
        for what, run, right in calls(url):
            try:
                got = run()
                passes, shown = right(got), repr(got)[:160]
            except Exception as e:
                passes, shown = False, f"{type(e).__name__}: {e}"
            failed += not passes
            print(f"{told}: {what}: {'passes' if passes else f'FAILS: {shown}'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
