"""/classify, /v1/score and /v1/rerank: what a model tells of texts, in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import Exchange, read_body, send_to_engines
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import decode_body
from appliance.runtime.api.scores.ask import Asking, Relevance
from appliance.runtime.api.scores.body import ClassifyRequest, RerankRequest, ScoreRequest
from appliance.runtime.api.sse import encode
from appliance.runtime.wire import vectors
from appliance.runtime.wire.text import Pair, TextDelta, TextRequest

Written = Callable[[list[bytes], dict[str, int]], Any]
"""(the vectors, the usage) -> the body of the answer"""


class VectorForm:
    """An answer that is made of the vectors of its requests, all at once."""

    def __init__(self, write: Written) -> None:
        self._write = write

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        raise NotImplementedError("scores are not streamed")

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        raise NotImplementedError("scores are not streamed")

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        tokens = usage["prompt_tokens"]
        shown = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return encode(self._write([delta.pooled for delta in choices], shown))


class Scores:
    def __init__(self, frontend: Frontend, models: Models) -> None:
        self._frontend, self._models = frontend, models
        self._asking = Asking(frontend, models.id)
        self._relevance = Relevance(self._asking)

    async def classify(self, request: Request) -> Response:
        body = decode_body(ClassifyRequest, await read_body(request))
        model = self._models.check(body.model)
        body.refuse_all()
        prompts, param, listed = body.given()
        self._asking.check_classifier()
        exchange = await self._send(request, self._asking.pooled(prompts, param))
        if param != "input":
            return await exchange.whole(self._native(exchange, request, listed))
        gives = self._asking.gives
        activation = "none" if body.plain else gives.activation

        def write(found: list[bytes], usage: dict[str, int]) -> Any:
            data: list[dict[str, Any]] = []
            for index, scores in enumerate(found):
                told = vectors.probabilities(scores, activation)
                label = gives.labels[int(told.argmax())]
                data.append(
                    {
                        "index": index,
                        "label": label,
                        "probs": told.tolist(),
                        "num_classes": len(told),
                    }
                )
            return self._list("classify", request, model, data) | {"usage": usage}

        return await exchange.whole(VectorForm(write))

    def _native(self, exchange: Exchange, request: Request, listed: bool) -> VectorForm:
        lengths = [len(t.prompt) // 4 for t in exchange.tokens]
        id = request.scope["state"]["request_id"]

        def write(found: list[bytes], usage: dict[str, int]) -> Any:
            shown = [
                {
                    "embedding": vectors.values(scores).tolist(),
                    "meta_info": {
                        "id": f"{id}-{i}" if listed else id,
                        "prompt_tokens": lengths[i],
                        "finish_reason": {"type": "length", "length": 0},
                    },
                }
                for i, scores in enumerate(found)
            ]
            return shown if listed else shown[0]

        return VectorForm(write)

    async def score(self, request: Request) -> Response:
        body = decode_body(ScoreRequest, await read_body(request))
        model = self._models.check(body.model)
        body.refuse_all()
        compared = body.compared()
        if compared is not None:
            return await self._compare(request, body, model, *compared)
        prompts = body.prompts()
        softmax = bool(body.apply_softmax)
        classes = bool(self._asking.gives.labels)
        if classes:
            exchange = await self._send(request, self._asking.pooled(prompts, "items"))
        else:
            asked = self._asking.labels(prompts, "items", body.labels(), body.temperature or 1.0)
            exchange = await self._send(request, asked)

        def write(found: list[bytes], usage: dict[str, int]) -> Any:
            if classes:
                told = [vectors.probabilities(f, "softmax" if softmax else "none") for f in found]
            else:
                told = [vectors.shares(f, softmax) for f in found]
            scores = [each.tolist() for each in told]
            return {"object": "scoring", "scores": scores, "model": model, "usage": usage}

        return await exchange.whole(VectorForm(write))

    async def _compare(
        self, request: Request, body: ScoreRequest, model: str, pairs: list[Pair], param: str
    ) -> Response:
        exchange = await self._send(request, self._relevance.of_pairs(pairs, param))
        plain = body.use_activation is False or body.activation is False

        def write(found: list[bytes], usage: dict[str, int]) -> Any:
            scores = self._relevance.scores(pairs, found, plain)
            data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)]
            return self._list("score", request, model, data) | {"usage": usage}

        return await exchange.whole(VectorForm(write))

    async def rerank(self, request: Request) -> Response:
        body = decode_body(RerankRequest, await read_body(request))
        model = self._models.check(body.model)
        body.refuse_all()
        texts = body.texts()
        asked = await self._relevance.of_documents(body.query, texts, body.instruct, self._frontend)
        exchange = await self._send(request, asked)
        pairs = [Pair(body.query, text) for text in texts]

        def write(found: list[bytes], usage: dict[str, int]) -> Any:
            scores = self._relevance.scores(pairs, found, plain=False)
            best = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n or len(texts)]
            results: list[dict[str, Any]] = []
            for i in best:
                result: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
                if body.return_documents is not False:
                    result["document"] = {"text": texts[i]}
                results.append(result)
            id = f"rerank-{request.scope['state']['request_id']}"
            return {
                "id": id, "object": "list", "model": model, "results": results, "usage": usage,
            }  # fmt: skip

        return await exchange.whole(VectorForm(write))

    async def _send(self, request: Request, asked: Sequence[TextRequest]) -> Exchange:
        return await send_to_engines(self._frontend, request, asked)

    def _list(
        self, kind: str, request: Request, model: str, data: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "id": f"{kind}-{request.scope['state']['request_id']}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": data,
        }
