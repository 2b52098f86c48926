"""POST /v1/responses, and what was kept of earlier ones."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.chat import ChatCompletions, as_chat
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.models import Models
from appliance.runtime.api.responses.body import ResponsesRequest, listed, messages_of
from appliance.runtime.api.responses.form import ResponseForm
from appliance.runtime.api.responses.store import Kept, ResponseStore, new_id
from appliance.runtime.api.schema import decode_body
from appliance.runtime.api.sse import encode

JSON = "application/json"


class Responses:
    """chat: the route whose requests these become."""

    def __init__(
        self, frontend: Frontend, models: Models, chat: ChatCompletions, store: ResponseStore
    ) -> None:
        self._frontend, self._models, self._chat = frontend, models, chat
        self._store = store

    async def post(self, request: Request) -> Response:
        body = decode_body(ResponsesRequest, await read_body(request))
        model = self._models.check(body.model)
        body.refuse_unsupported()
        items, before, owner = body.items(), [], _owner(request)
        if body.previous_response_id is not None:
            before = self._kept(body.previous_response_id, owner, "previous_response_id").messages
        new, id = messages_of(items), new_id()
        asked = self._chat.asked(body.as_chat(before, new))

        def keep(response: dict[str, Any], output: list[dict[str, Any]]) -> None:
            if body.store is not False:
                kept = Kept(owner, response, listed(items, id), [*before, *new, *output])
                self._store.put(id, kept)

        exchange = await send_to_engines(self._frontend, request, [asked])
        form = ResponseForm(body, id, model, keep)
        if not body.stream:
            return await exchange.whole(form)
        return await exchange.stream(form, True, False, self._frontend.keep_alive_s, form.framing)

    async def count(self, request: Request) -> Response:
        """How many tokens the input of such a response has."""
        body = decode_body(ResponsesRequest, await read_body(request))
        self._models.check(body.model)
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            kept = self._kept(body.previous_response_id, _owner(request), "previous_response_id")
            before = kept.messages
        chat = as_chat(body.as_chat(before, messages_of(body.items())))
        ids = await self._frontend.text.encode(chat, True)
        shown = {"object": "response.input_tokens", "input_tokens": len(ids)}
        return Response(encode(shown), media_type=JSON)

    async def show(self, request: Request) -> Response:
        return Response(encode(self._named(request).response), media_type=JSON)

    async def delete(self, request: Request) -> Response:
        self._named(request)
        id = request.path_params["id"]
        self._store.delete(id, _owner(request))
        return Response(encode({"id": id, "object": "response", "deleted": True}), media_type=JSON)

    async def cancel(self, request: Request) -> Response:
        self._named(request)
        raise RequestError(
            "only a response that runs in the background can be cancelled; close the connection "
            "of one that streams.",
            code="not_cancellable",
        )

    async def input_items(self, request: Request) -> Response:
        data = self._named(request).input
        ids = [item["id"] for item in data] or [""]
        shown = {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1]}
        return Response(encode(shown | {"has_more": False}), media_type=JSON)

    def _named(self, request: Request) -> Kept:
        return self._kept(request.path_params["id"], _owner(request), None)

    def _kept(self, id: str, owner: str, param: str | None) -> Kept:
        kept = self._store.get(id, owner)
        if kept is None:
            raise RequestError(
                f"there is no response {id[:80]!r}: it was not stored, was deleted, or is older "
                "than those that are kept.",
                status=400 if param else 404,
                code="previous_response_not_found" if param else "response_not_found",
                param=param,
            )
        return kept


def _owner(request: Request) -> str:
    """Answers are kept apart by key."""
    caller = request.scope["state"].get("caller")
    return "" if caller is None else str(caller.namespace)
