"""POST /generate in SGLang's shape, and the routes that its clients ask beside it."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.answer import Answer
from appliance.runtime.api.completions import Completions
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.models import Models
from appliance.runtime.api.native.abort import Aborts
from appliance.runtime.api.native.body import DEFAULT_MAX_TOKENS, NativeRequest, wishes
from appliance.runtime.api.native.form import NativeForm
from appliance.runtime.api.schema import decode_body
from appliance.runtime.api.sse import encode
from appliance.runtime.api.state import ConfigFile
from appliance.runtime.api.tgi import Tgi
from appliance.runtime.wire.request import FlushCache
from appliance.runtime.wire.text import AskedSampling, TextRequest

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PROBE_S = 20.0


class AbortRequest(msgspec.Struct, kw_only=True):
    rid: str | None = None
    abort_all: bool = False


class Native:
    """completions: the route whose requests these become. tgi: takes bodies of its shape."""

    def __init__(
        self,
        frontend: Frontend,
        models: Models,
        completions: Completions,
        tgi: Tgi,
        aborts: Aborts,
        settings: ConfigFile,
    ) -> None:
        self._frontend, self._models, self._completions = frontend, models, completions
        self._tgi, self._aborts, self._settings = tgi, aborts, settings

    async def generate(self, request: Request) -> Response:
        data = await read_body(request)
        body = decode_body(NativeRequest, data)
        if body.inputs is not None:
            return await self._tgi.answer(request, data)
        asked, listed = wishes(body, request.scope["state"]["request_id"])
        requests: list[TextRequest] = []
        for wish in asked:
            [one] = self._completions.asked(wish.body)
            default = DEFAULT_MAX_TOKENS if wish.limited else 0
            requests.append(msgspec.structs.replace(one, default_max_tokens=default))
        exchange = await send_to_engines(
            self._frontend, request, requests, [w.name for w in asked], takes_aborts=True
        )
        form = NativeForm(asked, exchange.tokens, listed, bool(body.return_text_in_logprobs))
        if not body.stream:
            return await exchange.whole(form)
        return await exchange.stream(form, False, False, keep_alive_s=0.0)

    # Control

    async def abort(self, request: Request) -> Response:
        body = decode_body(AbortRequest, await read_body(request))
        if not body.abort_all and not body.rid:
            raise RequestError("give rid, or abort_all.", param="rid")
        namespace = request.scope["state"]["caller"].namespace
        self._aborts.add(namespace, "" if body.abort_all else body.rid or "")
        return Response(status_code=200)

    async def flush_cache(self, request: Request) -> Response:
        """Empties what no running request uses; it need not wait for those."""
        for engine in self._frontend.engines:
            engine.send(FlushCache())
        return Response("Cache flushed.\n", media_type=TEXT)

    async def ping(self, request: Request) -> Response:
        return Response(status_code=200)

    async def health_generate(self, request: Request) -> Response:
        """One token from an engine within 20 seconds; 503 else."""
        frontend = self._frontend
        frontend.check_open(1)
        [rid] = frontend.mint(1)
        answer = Answer(1)
        writes = frontend.text.gives.text
        sampling = AskedSampling(
            max_tokens=int(writes), temperature=0.0, ignore_eos=True, pool=not writes
        )
        probe = TextRequest((rid,), (0,), sampling, arrival=time.monotonic())
        state = request.scope["state"]
        try:
            async with asyncio.timeout(PROBE_S):
                await frontend.submit(
                    [probe], answer, [state["request_id"]], "health", state["caller"]
                )
                await answer.take()
        except TimeoutError as e:
            raise RequestError(
                f"no engine gave a token within {PROBE_S:.0f} seconds.",
                status=503,
                type="server_error",
                code="unhealthy",
                retry_after_s=2.0,
            ) from e
        finally:
            frontend.cancel([rid])
        return Response(status_code=200)

    # What is served, and how

    async def model_info(self, request: Request) -> Response:
        model = self._settings.config.model
        known = _model_config(Path(model.path))
        shown = {
            "model_path": model.path,
            "tokenizer_path": model.path,
            "served_model_name": model.id,
            "is_generation": self._frontend.text.gives.text,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": known.get("model_type"),
            "architectures": known.get("architectures"),
            "max_context_length": self._frontend.context,
        }
        return Response(encode(shown), media_type=JSON)

    async def server_info(self, request: Request) -> Response:
        model = self._settings.config.model
        shown = {
            "model_path": model.path,
            "tokenizer_path": model.path,
            "served_model_name": model.id,
            "context_length": self._frontend.context,
            "tp_size": self._settings.config.engine.tp,
            "dp_size": self._settings.config.engine.replicas,
            "page_size": self._settings.config.schedule.page_size,
            "max_total_num_tokens": sum(load["max_total_num_tokens"] for load in self._loads()),
            "config": msgspec.to_builtins(self._settings.config),
            "internal_states": self._loads(),
            "version": version("appliance"),
        }
        return Response(encode(shown), media_type=JSON)

    async def loads(self, request: Request) -> Response:
        loads = self._loads()
        total = {
            "total_running_reqs": sum(load["num_running_reqs"] for load in loads),
            "total_waiting_reqs": sum(load["num_waiting_reqs"] for load in loads),
            "total_reqs": sum(load["num_total_reqs"] for load in loads),
            "avg_token_usage": sum(load["token_usage"] for load in loads) / len(loads),
        }
        shown = {
            "timestamp": time.time(),
            "version": version("appliance"),
            "dp_rank_count": len(loads),
            "loads": loads,
            "aggregate": total,
        }
        return Response(encode(shown), media_type=JSON)

    def _loads(self) -> list[dict[str, Any]]:
        """Of each engine, as it last told this frontend."""
        out: list[dict[str, Any]] = []
        for state in self._frontend.states():
            stats = state.stats
            running, waiting = int(stats.get("running", 0)), int(stats.get("waiting", 0))
            used, total = int(stats.get("used_tokens", 0)), int(stats.get("total_tokens", 0))
            queries = stats.get("cache_query_tokens", 0.0)
            out.append(
                {
                    "dp_rank": state.replica,
                    "connected": state.connected,
                    "num_running_reqs": running,
                    "num_waiting_reqs": waiting,
                    "num_total_reqs": running + waiting,
                    "num_used_tokens": used,
                    "max_total_num_tokens": total,
                    "token_usage": used / total if total else 0.0,
                    "cache_hit_rate": stats.get("cache_hit_tokens", 0.0) / max(1.0, queries),
                }
            )
        return out


def _model_config(folder: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode((folder / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return value if isinstance(value, dict) else {}
