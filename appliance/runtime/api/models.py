"""/v1/models, and which names the served model answers to. Needs no engine."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.sse import encode
from appliance.runtime.config import ModelConfig

DEFAULT = "default"
_ANTHROPIC = "anthropic-version"
"""A header that Anthropic's clients send with everything, and nobody else."""


class Models:
    """context: most tokens of prompt and output, shown as max_model_len."""

    def __init__(self, model: ModelConfig, context: int) -> None:
        self.id = model.id
        self.rename(model)
        self._context = context
        self._created = int(time.time())

    def rename(self, model: ModelConfig) -> None:
        """Answers to these names from now on."""
        self._names = tuple(dict.fromkeys((model.id, *model.served_names)))

    def check(self, name: str | None) -> str:
        """The name to answer under. RequestError 404 that lists the names there are."""
        if not name:
            return self.id
        if name in self._names or name == DEFAULT:
            return name
        raise RequestError(
            f"The model {name[:200]!r} is not served here. Served: "
            f"{', '.join([*self._names, DEFAULT])}.",
            status=404,
            code="model_not_found",
            param="model",
        )

    async def list(self, request: Request) -> Response:
        shown: dict[str, Any] = {"object": "list", "data": [self._card(n) for n in self._names]}
        if _ANTHROPIC in request.headers:
            shown = {
                "data": [self._anthropic_card(name) for name in self._names],
                "has_more": False,
                "first_id": self._names[0],
                "last_id": self._names[-1],
            }
        return Response(encode(shown), media_type="application/json")

    async def show(self, request: Request) -> Response:
        name = self.check(request.path_params["model"])
        card = self._anthropic_card if _ANTHROPIC in request.headers else self._card
        return Response(encode(card(name)), media_type="application/json")

    def _anthropic_card(self, name: str) -> dict[str, Any]:
        created = datetime.fromtimestamp(self._created, UTC).isoformat()
        return {"type": "model", "id": name, "display_name": name, "created_at": created}

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "appliance",
            "root": self.id,
            "parent": None,
            "max_model_len": self._context,
        }
