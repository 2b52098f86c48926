"""What is asked of a server before it is measured: its model's name, and a first answer."""

from __future__ import annotations

import asyncio

import msgspec

from appliance.bench.sender import send
from appliance.bench.stream import BadResponse, Endpoint
from appliance.bench.workload import Workload, jobs
from appliance.errors import NetworkError


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


async def _served_model(endpoint: Endpoint) -> str:
    try:
        async with endpoint:
            reader = await endpoint.get("/v1/models")
        if reader.status != 200:
            raise NetworkError(
                f"{endpoint.url}/v1/models answered {reader.error()}", code="APL-NET-005"
            )
        return msgspec.json.decode(reader.body, type=_Models).data[0].id
    except (OSError, BadResponse) as problem:
        raise NetworkError(
            f"No server answers at {endpoint.url}: {problem}.",
            "Start one with `appliance up`, or give another --url.",
            code="APL-NET-005",
        ) from problem
    except (msgspec.DecodeError, IndexError) as problem:
        raise NetworkError(
            f"{endpoint.url}/v1/models does not list a model: {problem}.",
            "Name the model with --model.",
            code="APL-NET-005",
        ) from problem


def served_model(url: str, api_key: str = "") -> str:
    """The first model that the server lists. Raises NetworkError, UsageError."""
    return asyncio.run(_served_model(Endpoint(url, api_key)))


def warm_up(workload: Workload, url: str, api_key: str, count: int) -> None:
    """Sends ``count`` requests like the workload's, one after the other, from another seed.

    Raises NetworkError with the server's own words when one fails.
    """
    if not count:
        return
    like = (
        msgspec.structs.replace(
            workload, seed=workload.seed + 1_000_003, requests=max(count, 1), prompts=[], rate=0.0
        )
        if not workload.prompts
        else workload
    )

    async def all_of_them() -> str:
        async with Endpoint(url, api_key) as endpoint:
            for job in jobs(like)[:count]:
                record = await send(endpoint, job, 600.0)
                if record.error:
                    return record.error
        return ""

    problem = asyncio.run(all_of_them())
    if problem:
        raise NetworkError(
            f"The first request to {url} failed: {problem}.",
            "Nothing was measured. See that the server is ready: `appliance status`.",
            code="APL-NET-005",
        )
