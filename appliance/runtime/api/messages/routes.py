"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from appliance.runtime.api.chat import ChatCompletions, as_chat
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.messages.body import CountRequest, MessagesRequest
from appliance.runtime.api.messages.form import MessageForm
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import decode_body
from appliance.runtime.api.sse import encode


class Messages:
    """chat: the route whose requests these become."""

    def __init__(self, frontend: Frontend, models: Models, chat: ChatCompletions) -> None:
        self._frontend, self._models, self._chat = frontend, models, chat

    async def post(self, request: Request) -> Response:
        body = decode_body(MessagesRequest, await read_body(request))
        model = self._served(body.model)
        asked = msgspec.structs.replace(
            self._chat.asked(body.as_chat()),
            default_max_tokens=body.max_tokens,
            reasoning="separate" if body.thinks else "hidden",
        )
        exchange = await send_to_engines(self._frontend, request, [asked])
        id = f"msg_{request.scope['state']['request_id']}"
        form = MessageForm(body, id, model, exchange.tokens)
        if not body.stream:
            return await exchange.whole(form)
        return await exchange.stream(form, True, False, self._frontend.keep_alive_s, form.framing)

    async def count(self, request: Request) -> Response:
        body = decode_body(CountRequest, await read_body(request))
        self._served(body.model)
        ids = await self._frontend.text.encode(as_chat(body.as_chat()), True)
        return Response(encode({"input_tokens": len(ids)}), media_type="application/json")

    def _served(self, name: str | None) -> str:
        """The name to answer under. Anthropic's own names mean the model that is here: its clients
        ask for several without being told to."""
        return self._models.check(None if (name or "").startswith("claude-") else name)
