"""The routes of every dialect but OpenAI's chat and completions, in one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from appliance import paths
from appliance.runtime.api.chat import ChatCompletions
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.messages.body import CountRequest, MessagesRequest
from appliance.runtime.api.messages.routes import Messages
from appliance.runtime.api.models import Models
from appliance.runtime.api.responses.body import ResponsesRequest
from appliance.runtime.api.responses.routes import Responses
from appliance.runtime.api.responses.store import ResponseStore
from appliance.runtime.config import RuntimeConfig

Route = tuple[str, str, Callable[[Request], Awaitable[Response]], type | None]
"""(method, path, endpoint, body)"""


def dialect_routes(
    frontend: Frontend, models: Models, chat: ChatCompletions, config: RuntimeConfig
) -> list[Route]:
    messages = Messages(frontend, models, chat, config.serve.keep_alive_comment_s)
    responses = Responses(
        frontend,
        models,
        chat,
        ResponseStore(paths.responses_dir()),
        config.serve.keep_alive_comment_s,
    )
    return [
        ("POST", "/v1/messages", messages.post, MessagesRequest),
        ("POST", "/v1/messages/count_tokens", messages.count, CountRequest),
        ("POST", "/v1/responses", responses.post, ResponsesRequest),
        ("GET", "/v1/responses/{id}", responses.show, None),
        ("DELETE", "/v1/responses/{id}", responses.delete, None),
        ("POST", "/v1/responses/{id}/cancel", responses.cancel, None),
        ("GET", "/v1/responses/{id}/input_items", responses.input_items, None),
    ]
