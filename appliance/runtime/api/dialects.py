"""The routes of every dialect but OpenAI's chat and completions, in one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from appliance.runtime.api.chat import ChatCompletions
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.messages.body import CountRequest, MessagesRequest
from appliance.runtime.api.messages.routes import Messages
from appliance.runtime.api.models import Models
from appliance.runtime.config import RuntimeConfig

Route = tuple[str, str, Callable[[Request], Awaitable[Response]], type | None]
"""(method, path, endpoint, body)"""


def dialect_routes(
    frontend: Frontend, models: Models, chat: ChatCompletions, config: RuntimeConfig
) -> list[Route]:
    messages = Messages(frontend, models, chat, config.serve.keep_alive_comment_s)
    return [
        ("POST", "/v1/messages", messages.post, MessagesRequest),
        ("POST", "/v1/messages/count_tokens", messages.count, CountRequest),
    ]
