"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.conversation import plain_messages
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.logprobs import chat_logprobs, prompt_logprobs
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import ChatRequest, decode_body
from appliance.runtime.api.sse import PlainChunks, encode, event
from appliance.runtime.api.tools import (
    ToolUse,
    call_pieces,
    function_call,
    read_functions,
    read_tools,
    whole_calls,
)
from appliance.runtime.wire.request import Grammar, TokenRequest, ids_from_bytes
from appliance.runtime.wire.text import CallDelta, Chat, TextDelta, TextRequest


class ChatForm:
    def __init__(
        self, body: ChatRequest, id: str, model: str, tokens: Sequence[TokenRequest]
    ) -> None:
        self._body, self._tokens = body, tokens
        self._usage_null = body.usage_options()[0]
        self._head = {"id": id, "object": "", "created": int(time.time()), "model": model}
        self._started = [False] * len(tokens)
        self._called = [False] * len(tokens)
        self._rich = bool(body.logprobs or body.return_token_ids)
        self._thoughts: list[list[str]] = [[] for _ in tokens]
        plain = {"index": 0, "delta": {"content": PlainChunks.MARK}, **_UNFINISHED}
        self._plain = PlainChunks(self._shell([plain], None), len(tokens))

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        if self._body.stream_reasoning is False:
            delta = self._with_whole_thoughts(choice, delta)
        started = self._started[choice]
        apart = bool(delta.reasoning or delta.calls)
        if started and not (delta.finish or self._rich or apart) and usage is None:
            return self._plain.chunk(choice, delta.text) if delta.text else b""
        # token ids are shown even when their text is held back for a whole character
        ids = delta.ids if self._body.return_token_ids else ()
        if not (delta.text or delta.finish or delta.logprobs or ids or apart):
            return b""
        content: dict[str, Any] = {}
        if not started:
            content = {"role": "assistant", "content": delta.text}
        elif delta.text:
            content = {"content": delta.text}
        content |= _reasoning(delta)
        if delta.calls:
            content |= self._shown_calls(delta, call_pieces)
            self._called[choice] = True
        self._started[choice] = True
        shown = {"index": choice, "delta": content, **_UNFINISHED}
        self._fill(shown, delta, self._called[choice])
        shell = self._shell([shown], usage)
        if self._body.return_token_ids and not started:
            shell["prompt_token_ids"] = self._prompt_ids()
        return event(shell)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return event(self._shell([], usage))

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        shown: list[dict[str, Any]] = []
        for i, delta in enumerate(choices):
            message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
            message |= _reasoning(delta)
            if delta.calls:
                message["content"] = delta.text or None
                message |= self._shown_calls(delta, whole_calls)
            one = {"index": i, "message": message, **_UNFINISHED}
            self._fill(one, delta, bool(delta.calls))
            shown.append(one)
        whole = self._head | {"object": "chat.completion", "choices": shown, "usage": usage}
        if self._body.prompt_logprobs is not None:
            whole["prompt_logprobs"] = prompt_logprobs(choices[0].prompt_logprobs)
        if self._body.return_token_ids:
            whole["prompt_token_ids"] = self._prompt_ids()
        return encode(whole)

    def _shown_calls(
        self, delta: TextDelta, written: Callable[[Sequence[CallDelta]], list[dict[str, Any]]]
    ) -> dict[str, Any]:
        if self._body.functions is not None:
            return {"function_call": function_call(delta.calls)}
        return {"tool_calls": written(delta.calls)}

    def _with_whole_thoughts(self, choice: int, delta: TextDelta) -> TextDelta:
        """Thoughts are kept until something else comes, and leave at once before it."""
        held = self._thoughts[choice]
        held.append(delta.reasoning)
        if not (delta.text or delta.calls or delta.finish):
            return msgspec.structs.replace(delta, reasoning="")
        whole = "".join(held)
        held.clear()
        return msgspec.structs.replace(delta, reasoning=whole)

    def _shell(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        shell = self._head | {"object": "chat.completion.chunk", "choices": choices}
        if usage is not None or self._usage_null:
            shell["usage"] = usage
        return shell

    def _fill(self, shown: dict[str, Any], delta: TextDelta, called: bool) -> None:
        if self._body.logprobs:
            shown["logprobs"] = chat_logprobs(delta.logprobs)
        if self._body.return_token_ids:
            shown["token_ids"] = delta.ids
        if delta.finish:
            calls = "tool_calls" if self._body.functions is None else "function_call"
            stopped = calls if called and delta.finish == "stop" else delta.finish
            shown["finish_reason"] = stopped
            shown["stop_reason"] = delta.matched

    def _prompt_ids(self) -> list[int]:
        ids: list[int] = ids_from_bytes(self._tokens[0].prompt).tolist()
        return ids


_UNFINISHED: dict[str, Any] = {"logprobs": None, "finish_reason": None}


def _reasoning(delta: TextDelta) -> dict[str, Any]:
    """Thoughts under both names that clients read them by."""
    if not delta.reasoning:
        return {}
    return {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}


class ChatCompletions:
    def __init__(self, frontend: Frontend, models: Models) -> None:
        self._frontend, self._models = frontend, models

    async def post(self, request: Request) -> Response:
        body = decode_body(ChatRequest, await read_body(request))
        model = self._models.check(body.model)
        asked = [self.asked(body)]
        exchange = await send_to_engines(self._frontend, request, asked, body.names)
        form = ChatForm(
            body, f"chatcmpl-{request.scope['state']['request_id']}", model, exchange.tokens
        )
        if not body.stream:
            return await exchange.whole(form)
        return await exchange.stream(
            form, *body.usage_options(), keep_alive_s=self._frontend.keep_alive_s
        )

    def asked(self, body: ChatRequest) -> TextRequest:
        """What a chat of any dialect asks for. RequestError for what cannot be honoured."""
        body.refuse_unsupported()
        n = body.n or 1
        self._frontend.check_open(n)
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else -1
        wanted = body.max_completion_tokens or body.max_tokens
        use = tool_use(body)
        return TextRequest(
            rids=self._frontend.mint(n),
            prompt=_as_chat(body, use),
            sampling=body.sampling(wanted, logprobs),
            param="messages",
            stop=body.stops(),
            include_stop=body.includes_stop,
            skip_special_tokens=body.skip_special_tokens is not False,
            continues=bool(body.continue_final_message),
            priority=body.priority or 0,
            arrival=time.monotonic(),
            cache_key=body.cache_key,
            calls=use.calls,
            may_call=use.may_call,
            parallel_calls=body.parallel_tool_calls is not False and not use.single,
            reasoning=body.shown_reasoning(),
            grammar=_grammar(use, body),
        )


def _grammar(use: ToolUse, body: ChatRequest) -> Grammar | None:
    asked = body.grammar()
    if use.calls == "forced" and asked is not None:
        raise RequestError(
            "a forced tool call and a form for the answer exclude each other.", param="tool_choice"
        )
    return asked


def tool_use(body: ChatRequest) -> ToolUse:
    """Of tools, or of functions, as they once were called."""
    if body.functions is None and body.function_call is None:
        return read_tools(body.tools, body.tool_choice)
    if body.tools is not None or body.tool_choice is not None:
        raise RequestError(
            "functions and function_call are the older words for tools and tool_choice; give one "
            "or the other.",
            param="functions",
        )
    return read_functions(body.functions or (), body.function_call)


def as_chat(body: ChatRequest) -> Chat:
    return _as_chat(body, tool_use(body))


def _as_chat(body: ChatRequest, use: ToolUse) -> Chat:
    return make_chat(
        body.messages,
        use.tools,
        body.template_variables(),
        body.add_generation_prompt,
        body.continue_final_message,
    )


def make_chat(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any] | None,
    add_generation_prompt: bool | None,
    continue_final: bool | None,
) -> Chat:
    if continue_final and add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    return Chat(
        messages=[_with_thoughts(m) for m in plain_messages(messages)],
        tools=tools or None,
        variables=variables or {},
        add_generation_prompt=add_generation_prompt is not False,
        continue_final=bool(continue_final),
    )


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Templates read the thoughts of an earlier answer under one name only."""
    thoughts = message.get("reasoning")
    if isinstance(thoughts, str) and "reasoning_content" not in message:
        return {**message, "reasoning_content": thoughts}
    return message
