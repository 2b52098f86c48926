"""POST /v1/embeddings, and /encode in SGLang's shape."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import Inputs, decode_body, read_inputs
from appliance.runtime.api.sse import encode
from appliance.runtime.wire import vectors
from appliance.runtime.wire.text import AskedSampling, TextDelta, TextRequest


class EmbeddingRequest(Struct, kw_only=True):
    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None


class EncodeRequest(Struct, kw_only=True):
    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    rid: str | list[str] | None = None

    def given(self) -> tuple[str | list[Any], str, bool]:
        """What to embed, the field that holds it, and whether it came as a list."""
        if (self.text is None) == (self.input_ids is None):
            raise RequestError("give either text or input_ids.", param="text")
        if self.text is not None:
            return self.text, "text", isinstance(self.text, list)
        ids = self.input_ids or []
        return ids, "input_ids", bool(ids) and isinstance(ids[0], list)


def vector(pooled: bytes, dimensions: int | None, normalizes: bool) -> vectors.Floats:
    """RequestError when the embedding has fewer dimensions."""
    length = len(pooled) // 4
    if dimensions is not None and dimensions > length:
        raise RequestError(
            f"dimensions is {dimensions:,}; this model's embeddings have {length:,}.",
            param="dimensions",
        )
    return vectors.embedding(pooled, normalizes, dimensions)


class _OpenAIForm:
    def __init__(self, body: EmbeddingRequest, model: str, normalizes: bool) -> None:
        self._body, self._model, self._normalizes = body, model, normalizes

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        data = []
        for index, delta in enumerate(choices):
            found = vector(delta.pooled, self._body.dimensions, self._normalizes)
            shown: Any = found.tolist()
            if self._body.encoding_format == "base64":
                shown = base64.b64encode(found.astype("<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        tokens = usage["prompt_tokens"]
        return encode(
            {
                "object": "list",
                "data": data,
                "model": self._model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )


class _NativeForm(_OpenAIForm):
    def __init__(
        self,
        body: EncodeRequest,
        id: str,
        as_list: bool,
        lengths: Sequence[int],
        normalizes: bool,
    ) -> None:
        self._dimensions, self._id, self._normalizes = body.dimensions, id, normalizes
        self._as_list, self._lengths = as_list, lengths

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        shown = [
            {
                "embedding": vector(delta.pooled, self._dimensions, self._normalizes).tolist(),
                "meta_info": {
                    "id": f"{self._id}-{i}" if self._as_list else self._id,
                    "prompt_tokens": length,
                    "finish_reason": {"type": "length", "length": 0},
                },
            }
            for i, (delta, length) in enumerate(zip(choices, self._lengths, strict=True))
        ]
        return encode(shown if self._as_list else shown[0])


class Embeddings:
    def __init__(self, frontend: Frontend, models: Models) -> None:
        self._frontend, self._models = frontend, models
        self._normalizes = frontend.text.gives.normalizes

    async def post(self, request: Request) -> Response:
        body = decode_body(EmbeddingRequest, await read_body(request))
        model = self._models.check(body.model)
        inputs = read_inputs(body.input, "input")
        asked = self._asked(inputs, "input", body.truncate_prompt_tokens or 0)
        exchange = await send_to_engines(self._frontend, request, asked)
        return await exchange.whole(_OpenAIForm(body, model, self._normalizes))

    async def encode(self, request: Request) -> Response:
        body = decode_body(EncodeRequest, await read_body(request))
        given, param, as_list = body.given()
        asked = self._asked(read_inputs(given, param), param)
        exchange = await send_to_engines(self._frontend, request, asked)
        lengths = [len(t.prompt) // 4 for t in exchange.tokens]
        id = request.scope["state"]["request_id"]
        form = _NativeForm(body, id, as_list, lengths, self._normalizes)
        return await exchange.whole(form)

    def _asked(self, prompts: Inputs, param: str, truncate: int = 0) -> list[TextRequest]:
        if not self._frontend.text.gives.pooling:
            raise RequestError(
                f"{self._models.id} is not made for embeddings; a model with a 1_Pooling folder "
                "(sentence-transformers) is.",
                code="unsupported_for_model",
                param="model",
            )
        self._frontend.check_open(len(prompts))
        arrival = time.monotonic()
        return [
            TextRequest(
                rids=self._frontend.mint(1),
                prompt=prompt,
                sampling=AskedSampling(max_tokens=0, temperature=0.0, pool=True),
                param=param,
                arrival=arrival,
                truncate=truncate,
            )
            for prompt in prompts
        ]
