"""The OpenAPI document of the routes, made from the types that bodies are decoded to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

JSON = "application/json"


class OpenAIError(Struct):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIRefusal(Struct):
    error: OpenAIError


class AnthropicError(Struct):
    type: str
    message: str


class AnthropicRefusal(Struct, tag="error"):
    error: AnthropicError


class TgiRefusal(Struct):
    error: str
    error_type: str


REFUSALS = (OpenAIRefusal, AnthropicRefusal, TgiRefusal)


def document(routes: Iterable[tuple[str, str, object, type | None]]) -> bytes:
    """routes: (method, path, endpoint, type of the body or None)"""
    table = [(method, path, body) for method, path, _, body in routes]
    bodies = list(dict.fromkeys(body for _, _, body in table if body is not None))
    references, components = msgspec.json.schema_components(
        [*bodies, *REFUSALS], ref_template="#/components/schemas/{name}"
    )
    shown = dict(zip(bodies, references, strict=False))
    refused = {
        "description": "Refused or failed; the shape is that of the route's dialect",
        "content": {JSON: {"schema": {"anyOf": references[len(bodies) :]}}},
    }
    found: dict[str, Any] = {}
    for method, path, body in table:
        operation: dict[str, Any] = {
            "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}"),
            "responses": {"200": {"description": "OK"}, "4XX": refused, "5XX": refused},
        }
        names = re.findall(r"\{(\w+)", path)
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        if body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {JSON: {"schema": shown[body]}},
            }
        found.setdefault(path.replace(":path", ""), {})[method.lower()] = operation
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "appliance", "version": "1"},
        "paths": found,
        "components": {"schemas": components},
    }
    return msgspec.json.encode(whole)
