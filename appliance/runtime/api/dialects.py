"""The routes of every dialect but OpenAI's chat and completions, in one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from appliance import paths
from appliance.runtime.api.chat import ChatCompletions
from appliance.runtime.api.completions import Completions
from appliance.runtime.api.embeddings import EmbeddingRequest, Embeddings, EncodeRequest
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.messages.body import CountRequest, MessagesRequest
from appliance.runtime.api.messages.routes import Messages
from appliance.runtime.api.models import Models
from appliance.runtime.api.native.abort import Aborts
from appliance.runtime.api.native.body import NativeRequest
from appliance.runtime.api.native.routes import AbortRequest, Native
from appliance.runtime.api.responses.body import ResponsesRequest
from appliance.runtime.api.responses.routes import Responses
from appliance.runtime.api.responses.store import ResponseStore
from appliance.runtime.api.scores.body import ClassifyRequest, RerankRequest, ScoreRequest
from appliance.runtime.api.scores.routes import Scores
from appliance.runtime.api.state import ConfigFile
from appliance.runtime.api.tgi import Tgi, TgiRequest

Route = tuple[str, str, Callable[[Request], Awaitable[Response]], type | None]
"""(method, path, endpoint, body)"""


def dialect_routes(
    frontend: Frontend,
    models: Models,
    chat: ChatCompletions,
    completions: Completions,
    aborts: Aborts,
    settings: ConfigFile,
) -> list[Route]:
    embeddings = Embeddings(frontend, models)
    messages = Messages(frontend, models, chat)
    responses = Responses(frontend, models, chat, ResponseStore(paths.responses_dir()))
    tgi = Tgi(frontend, models, completions)
    native = Native(frontend, models, completions, tgi, aborts, settings)
    return [
        *_native_routes(native, tgi),
        ("POST", "/v1/embeddings", embeddings.post, EmbeddingRequest),
        ("POST", "/encode", embeddings.encode, EncodeRequest),
        *_score_routes(Scores(frontend, models)),
        ("POST", "/v1/messages", messages.post, MessagesRequest),
        ("POST", "/v1/messages/count_tokens", messages.count, CountRequest),
        ("POST", "/v1/responses", responses.post, ResponsesRequest),
        ("POST", "/v1/responses/input_tokens", responses.count, ResponsesRequest),
        ("GET", "/v1/responses/{id}", responses.show, None),
        ("DELETE", "/v1/responses/{id}", responses.delete, None),
        ("POST", "/v1/responses/{id}/cancel", responses.cancel, None),
        ("GET", "/v1/responses/{id}/input_items", responses.input_items, None),
    ]


def _score_routes(scores: Scores) -> list[Route]:
    """Under every path that clients of the peers know them by."""
    return [
        ("POST", "/classify", scores.classify, ClassifyRequest),
        ("POST", "/v1/classify", scores.classify, ClassifyRequest),
        ("POST", "/score", scores.score, ScoreRequest),
        ("POST", "/v1/score", scores.score, ScoreRequest),
        ("POST", "/rerank", scores.rerank, RerankRequest),
        ("POST", "/v1/rerank", scores.rerank, RerankRequest),
        ("POST", "/v2/rerank", scores.rerank, RerankRequest),
    ]


def _native_routes(native: Native, tgi: Tgi) -> list[Route]:
    return [
        ("POST", "/generate", native.generate, NativeRequest),
        ("PUT", "/generate", native.generate, NativeRequest),
        ("POST", "/abort_request", native.abort, AbortRequest),
        ("POST", "/flush_cache", native.flush_cache, None),
        ("GET", "/flush_cache", native.flush_cache, None),
        ("GET", "/health_generate", native.health_generate, None),
        ("GET", "/model_info", native.model_info, None),
        ("GET", "/get_model_info", native.model_info, None),
        ("GET", "/server_info", native.server_info, None),
        ("GET", "/get_server_info", native.server_info, None),
        ("GET", "/v1/loads", native.loads, None),
        ("GET", "/ping", native.ping, None),
        ("POST", "/generate_stream", tgi.generate_stream, TgiRequest),
        ("POST", "/", tgi.root, TgiRequest),
        ("GET", "/info", tgi.info, None),
    ]
