"""Other people's clients against a running embedded model, each from an environment of its own:

    python -m venv /tmp/clients && /tmp/clients/bin/pip install langchain-openai litellm mcp \\
        llama-index-llms-openai-like "lm-eval[api]" transformers
    appliance up --port 8000 && /tmp/clients/bin/python tests/e2e/other_clients.py --port 8000

Prints a line for each call; ends with 1 when one of them failed. A library that is not installed is
told and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SUM = "What is 37 + 45?"
WEATHER = "What is the weather in Berlin?"
PERSON = "Answer in JSON with name and age: Anna is 7."
MESSAGES = [{"role": "user", "content": SUM}]
FOLDER = Path(__file__).parents[2] / "appliance" / "default_model"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY},
}

Call = tuple[str, Callable[[], Any], Callable[[Any], bool]]


def adds(text: Any) -> bool:
    return "82" in text


def langchain(url: str) -> Iterator[Call]:
    openai = import_module("langchain_openai")
    pydantic = import_module("pydantic")
    person = pydantic.create_model("Person", name=(str, ...), age=(int, ...))
    chat = openai.ChatOpenAI(
        base_url=url, api_key="-", model="default", temperature=0, max_retries=0, stream_usage=True
    )
    responses = openai.ChatOpenAI(
        base_url=url, api_key="-", model="default", temperature=0, use_responses_api=True
    )
    text = openai.OpenAI(base_url=url, api_key="-", model="default", temperature=0, max_tokens=12)

    async def both() -> str:
        whole = await chat.ainvoke(SUM)
        streamed = "".join([c.content async for c in chat.astream(SUM)])
        assert whole.content == streamed
        return streamed

    def called(calls: Any) -> bool:
        return [(c["name"], c["args"]) for c in calls] == [("get_weather", {"city": "Berlin"})]

    def streamed_call() -> Any:
        chunks = list(chat.bind_tools([TOOL]).stream(WEATHER))
        return sum(chunks[1:], chunks[0]).tool_calls

    yield "invoke", lambda: chat.invoke(SUM).content, adds
    yield "usage", lambda: chat.invoke(SUM).usage_metadata["total_tokens"], lambda n: n > 10
    yield "stream", lambda: "".join(c.content for c in chat.stream(SUM)), adds
    yield "batch", lambda: [m.content for m in chat.batch([SUM] * 8)], lambda t: all(map(adds, t))
    yield "ainvoke, astream", lambda: asyncio.run(both()), adds
    yield (
        "logprobs",
        lambda: chat.bind(logprobs=True, top_logprobs=3).invoke(SUM).response_metadata["logprobs"],
        lambda found: len(found["content"][0]["top_logprobs"]) == 3,
    )
    yield "completions", lambda: text.invoke("Once upon a time"), bool
    yield "bind_tools", lambda: chat.bind_tools([TOOL]).invoke(WEATHER).tool_calls, called
    yield "bind_tools, stream", streamed_call, called
    for method in ("json_schema", "json_mode", "function_calling"):
        shaped = chat.with_structured_output(person, method=method)
        yield f"with_structured_output {method}", lambda s=shaped: s.invoke(PERSON), bool
    yield "responses", lambda: responses.invoke(SUM).content[0]["text"], adds
    yield "responses, stream", lambda: len(list(responses.stream(SUM))), lambda n: n > 3


def litellm(url: str) -> Iterator[Call]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    lib = import_module("litellm")
    lib.suppress_debug_info = True
    where = {"api_base": url, "api_key": "-"}
    asked = {**where, "model": "openai/default", "messages": MESSAGES, "temperature": 0}

    def said(answer: Any) -> str:
        return answer.choices[0].message.content

    async def both() -> str:
        whole = said(await lib.acompletion(**asked))
        stream = await lib.acompletion(stream=True, **asked)
        streamed = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert whole == streamed
        return streamed

    def refused() -> str:
        try:
            lib.completion(**{**asked, "model": "openai/nobody"})
        except lib.NotFoundError as e:
            return str(e)
        return ""

    def night() -> Any:
        body = {"model": "default", "messages": MESSAGES, "temperature": 0}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        on = {**where, "custom_llm_provider": "openai"}
        data = ("a.jsonl", json.dumps(line).encode())
        file = lib.create_file(file=data, purpose="batch", **on)
        batch = lib.create_batch(
            completion_window="24h",
            endpoint="/v1/chat/completions",
            input_file_id=file.id,
            **on,
        )
        while batch.status not in ("completed", "failed"):
            time.sleep(0.1)
            batch = lib.retrieve_batch(batch_id=batch.id, **on)
        return lib.file_content(file_id=batch.output_file_id, **on).text

    yield "completion", lambda: said(lib.completion(**asked)), adds
    yield (
        "completion, stream",
        lambda: "".join(
            c.choices[0].delta.content or "" for c in lib.completion(stream=True, **asked)
        ),
        adds,
    )
    yield "acompletion", lambda: asyncio.run(both()), adds
    vllm = {**asked, "model": "hosted_vllm/default"}
    yield "completion as hosted_vllm", lambda: said(lib.completion(**vllm)), adds
    anthropic = {
        **asked, "model": "anthropic/default", "api_base": url.removesuffix("/v1"),
        "max_tokens": 40,
    }  # fmt: skip
    yield "completion as anthropic", lambda: said(lib.completion(**anthropic)), adds
    weather = {**asked, "messages": [{"role": "user", "content": WEATHER}], "tools": [TOOL]}
    for choice in ("auto", "required"):
        yield (
            f"tools, {choice}",
            lambda c=choice: lib.completion(tool_choice=c, **weather).choices[0].message,
            lambda message: json.loads(message.tool_calls[0].function.arguments)["city"],
        )
    yield (
        "text_completion",
        lambda: (
            lib.text_completion(
                model="text-completion-openai/default",
                prompt="Once upon a time",
                max_tokens=9,
                **where,
            )
            .choices[0]
            .text
        ),
        bool,
    )
    yield "an unknown model", refused, lambda text: "not served here" in text
    yield "files and batches", night, adds


def llama_index(url: str) -> Iterator[Call]:
    like = import_module("llama_index.llms.openai_like").OpenAILike
    message = import_module("llama_index.core.llms").ChatMessage
    function = import_module("llama_index.core.tools").FunctionTool
    asked = [message(role="user", content=SUM)]
    with_ = {"model": "default", "api_base": url, "api_key": "-", "temperature": 0}
    chat = like(is_chat_model=True, is_function_calling_model=True, max_tokens=60, **with_)
    text = like(is_chat_model=False, max_tokens=12, **with_)

    def get_weather(city: str) -> str:
        """Weather of a city"""
        return f"sunny in {city}"

    async def streamed() -> str:
        return "".join([r.delta or "" async for r in await chat.astream_chat(asked)])

    def calls() -> Any:
        tool = function.from_defaults(get_weather)
        return chat.get_tool_calls_from_response(chat.chat_with_tools([tool], user_msg=WEATHER))

    yield "chat", lambda: chat.chat(asked).message.content, adds
    yield "stream_chat", lambda: "".join(r.delta or "" for r in chat.stream_chat(asked)), adds
    yield "astream_chat", lambda: asyncio.run(streamed()), adds
    yield "complete, text", lambda: text.complete("Once upon a time").text, bool
    yield (
        "stream_complete, text",
        lambda: "".join(r.delta or "" for r in text.stream_complete("Once upon a time")),
        bool,
    )
    yield "chat_with_tools", calls, lambda found: found[0].tool_kwargs == {"city": "Berlin"}


def lm_eval(url: str) -> Iterator[Call]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    models = import_module("lm_eval.models.openai_completions")
    instance = import_module("lm_eval.api.instance").Instance
    pairs = [("The capital of France is", " Paris"), ("Once upon a time", ", there was")]

    def requests(kind: str, *arguments: Any) -> list[Any]:
        return [
            instance(request_type=kind, doc={}, arguments=a, idx=i, metadata=("t", i, 1))
            for i, a in enumerate(arguments)
        ]

    until = {"until": ["."], "max_gen_toks": 24, "temperature": 0}
    for word, options in (
        ("ids", {"tokenizer_backend": "huggingface", "tokenizer": str(FOLDER)}),
        ("our tokenizer", {"tokenizer_backend": "remote"}),
    ):
        lm = models.LocalCompletionsAPI(
            model="default", base_url=f"{url}/completions", batch_size=2, max_length=2048, **options
        )
        yield (
            f"local-completions loglikelihood, {word}",
            lambda lm=lm: lm.loglikelihood(requests("loglikelihood", *pairs)),
            lambda told: all(greedy and -0.1 < value < 0 for value, greedy in told),
        )
        yield (
            f"local-completions loglikelihood_rolling, {word}",
            lambda lm=lm: lm.loglikelihood_rolling(
                requests("loglikelihood_rolling", ("Once upon a time, there was a shy shepherd.",))
            ),
            lambda told: told[0] < 0,
        )
        yield (
            f"local-completions generate_until, {word}",
            lambda lm=lm: lm.generate_until(
                requests("generate_until", ("Once upon a time", dict(until)))
            ),
            lambda told: told[0] and "." not in told[0],
        )
    chat = models.LocalChatCompletion(model="default", base_url=f"{url}/chat/completions")
    yield (
        "local-chat-completions generate_until",
        lambda: chat.generate_until(
            requests("generate_until", (chat.apply_chat_template(MESSAGES), dict(until)))
        ),
        lambda told: adds(told[0]),
    )


CLIENTS: dict[str, Callable[[str], Iterator[Call]]] = {
    "langchain-openai": langchain,
    "litellm": litellm,
    "llama-index-llms-openai-like": llama_index,
    "lm_eval": lm_eval,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--only", choices=CLIENTS, action="append")
    options = parser.parse_args()
    failed = 0
    for name in options.only or CLIENTS:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
            continue
        for what, run, right in CLIENTS[name](f"http://127.0.0.1:{options.port}/v1"):
            try:
                got = run()
                verdict = "ok" if right(got) else f"WRONG: {got!r}"
            except Exception as e:
                verdict = f"FAILED: {type(e).__name__}: {e}"
            failed += verdict != "ok"
            print(f"  {what}: {verdict[:400]}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
