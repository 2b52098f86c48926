"""What a benchmark sends: prompts, lengths and arrival times, all from one seed.

In: a dataset by name, such as ``range:512-1024,128-512``. Out: one HTTP body a request. Every
process that sends makes its own share, so nothing large travels between processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.errors import UsageError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Form = Literal["ids", "text"]
Api = Literal["openai", "chat", "native"]

DATASETS = (
    "sharegpt-like, random, fixed:IN,OUT, range:IN-IN,OUT-OUT, prefix:GROUPS,SHARED,OWN,OUT, "
    "sharegpt:FILE.json, FILE.jsonl"
)
_SHAREGPT_MEAN = (208, 204)
_SHAREGPT_LONGEST = 1024
_SHAREGPT_SPREAD = 1.0
"""Standard deviation of the logarithm of a length."""
_SHORTEST = 4
_MOST_IN_TIME = 200_000
"""Requests that are drawn for a duration that nothing else bounds."""

# Streams of random numbers that must not touch each other.
_LENGTHS, _ARRIVALS, _OWN, _SHARED, _ORDER = range(5)

_WORDS = tuple(
    word
    for line in (
        "able about above across after again air along also answer any around ask away back ball",
        "bank be bear beat begin bell best bird blue boat body book born both box bread bring",
        "brown build cake call came can care carry cat chair child city clean clear close cloud",
        "coat cold come cook corn could count cut dance dark day deep desk door down draw dream",
        "dress drink dry each early earth east eat egg eight end even every eye face fall far",
        "farm fast field fill find fire fish five floor flower fly food foot forest four free",
        "friend from fruit full game garden gate give glass gold good grass green ground grow",
        "hand happy hard hat head hear heart help high hill hold home hope horse hot hour house",
        "ice idea inside island jump keep key kind king know lake land",
    )
    for word in line.split()
)


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt that came from a file: token ids, or text, or messages of a chat."""

    output_len: int
    ids: list[int] | None = None
    text: str | None = None
    messages: list[dict[str, Any]] | None = None


class Workload(msgspec.Struct, frozen=True):
    """All that decides which bytes are sent, and when.

    rate: requests a second (Poisson); 0 sends all at once. id_range: lowest and highest token id
    of a random prompt. prompts: of a file, in order; else empty. extra: more fields of the body.
    duration_s: no request is begun later than so many seconds after the start; 0: all are.
    """

    dataset: str
    requests: int
    model: str
    seed: int = 0
    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    id_range: tuple[int, int] = (300, 3000)
    form: Form = "ids"
    """Of random prompts: token ids, or words. Chat takes words."""
    api: Api = "openai"
    """openai: completions; chat: chat completions; native: SGLang's /generate."""
    duration_s: float = 0.0
    rate: float = 0.0
    ignore_eos: bool = True
    temperature: float = 0.0
    extra: dict[str, Any] = {}
    prompts: list[Prompt] = []


class Job(msgspec.Struct, frozen=True):
    """One request. arrival: seconds after the start. output_len: tokens asked for."""

    index: int
    arrival: float
    path: str
    body: bytes
    input_len: int
    output_len: int


def _rng(workload: Workload, stream: int, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([workload.seed, stream, index])


def _numbers(dataset: str, pattern: str) -> tuple[int, ...]:
    found = re.fullmatch(pattern, dataset)
    if not found:
        raise UsageError(f"{dataset!r} is no dataset.", f"Use one of: {DATASETS}.")
    numbers = tuple(int(n) for n in found.groups())
    if min(numbers) < 1:
        raise UsageError(f"{dataset!r} has a length of 0.", "Lengths and counts start at 1.")
    return numbers


def prefix_shape(dataset: str) -> tuple[int, int, int, int]:
    """(groups, shared, own, out) of a ``prefix:`` dataset. Raises UsageError."""
    groups, shared, own, out = _numbers(dataset, r"prefix:(\d+),(\d+),(\d+),(\d+)")
    return groups, shared, own, out


def clipped_lognormal(
    rng: np.random.Generator, mean: float, spread: float, low: int, high: int, count: int
) -> Ints:
    """Whole lengths in [low, high], log-normal, with this mean after the cut at both ends."""
    grid = np.exp(spread * _normal_grid())
    lowest, highest = np.log(low), np.log(high)
    for _ in range(60):
        middle = (lowest + highest) / 2
        if float(np.clip(np.exp(middle) * grid, low, high).mean()) < mean:
            lowest = middle
        else:
            highest = middle
    drawn = np.exp(lowest + spread * rng.standard_normal(count))
    whole: Ints = np.clip(np.rint(drawn), low, high).astype(np.int64)
    return whole


def _normal_grid() -> Floats:
    """20,001 evenly weighted points of the standard normal distribution."""
    x = np.linspace(-8, 8, 400_001)
    cumulated = np.cumsum(np.exp(-x * x / 2))
    quantiles = (np.arange(20_001) + 0.5) / 20_001
    points: Floats = np.interp(quantiles, cumulated / cumulated[-1], x)
    return points


def lengths(workload: Workload) -> tuple[Ints, Ints]:
    """Prompt and output lengths in tokens, one for each request. Raises UsageError."""
    n, name = workload.requests, workload.dataset
    rng = _rng(workload, _LENGTHS)
    if workload.prompts:
        ins = [len(p.ids or ()) for p in workload.prompts]
        return np.array(ins), np.array([p.output_len for p in workload.prompts])
    if name == "sharegpt-like":
        inputs, outputs = (
            clipped_lognormal(rng, mean, _SHAREGPT_SPREAD, _SHORTEST, _SHAREGPT_LONGEST, n)
            for mean in _SHAREGPT_MEAN
        )
        return inputs, outputs
    if name == "random":
        low = [
            max(1, round(length * workload.range_ratio))
            for length in (workload.input_len, workload.output_len)
        ]
        return (
            rng.integers(low[0], workload.input_len, n, endpoint=True),
            rng.integers(low[1], workload.output_len, n, endpoint=True),
        )
    if name.startswith("fixed:"):
        length_in, length_out = _numbers(name, r"fixed:(\d+),(\d+)")
        return np.full(n, length_in), np.full(n, length_out)
    if name.startswith("prefix:"):
        _, shared, own, out = prefix_shape(name)
        return np.full(n, shared + own), np.full(n, out)
    a, b, c, d = _numbers(name, r"range:(\d+)-(\d+),(\d+)-(\d+)")
    if a > b or c > d:
        raise UsageError(f"{name!r} has a range that ends before it begins.", "Swap its ends.")
    return rng.integers(a, b, n, endpoint=True), rng.integers(c, d, n, endpoint=True)


def arrivals(workload: Workload) -> Floats:
    """Seconds after the start at which each request is due, ascending."""
    if workload.rate <= 0:
        return np.zeros(workload.requests)
    gaps = _rng(workload, _ARRIVALS).exponential(1 / workload.rate, workload.requests)
    return np.cumsum(gaps)


def timed(workload: Workload, seconds: float, bounded: bool) -> Workload:
    """The workload that ends after `seconds`; bounded: its number of requests was asked for.

    At a rate, as many requests as arrive in that time. Raises UsageError.
    """
    if seconds <= 0:
        raise UsageError("A duration is longer than nothing.", "Use such as --duration 60s.")
    drawn = workload.requests if bounded or workload.prompts else _MOST_IN_TIME
    changed = msgspec.structs.replace(workload, requests=drawn, duration_s=seconds)
    if workload.rate > 0:
        came = int(np.searchsorted(arrivals(changed), seconds))
        return msgspec.structs.replace(changed, requests=max(1, came))
    return changed


def check(workload: Workload) -> None:
    """Refuses what cannot be sent. Raises UsageError."""
    low, high = workload.id_range
    if not 0 <= low < high:
        raise UsageError(f"The id range {low}-{high} is empty.", "Use such as 300-3000.")
    if workload.requests < 1:
        raise UsageError("There is no request to send.", "Use --num-prompts 1 or more.")
    if min(workload.input_len, workload.output_len) < 1:
        raise UsageError("A length of 0 tokens cannot be sent.", "Use 1 or more.")
    if workload.api == "native" and any(p.messages for p in workload.prompts):
        raise UsageError("The native API takes no messages.", "Use --api chat.")
    if not 0 <= workload.range_ratio <= 1:
        raise UsageError("--range-ratio is a share.", "Use a number from 0 to 1.")
    lengths(workload)


def each_job(workload: Workload, share: int = 0, of: int = 1) -> Iterator[Job]:
    """Every ``of``-th request, from number ``share`` on, in order of arrival, made when asked."""
    inputs, outputs = lengths(workload)
    due = arrivals(workload)
    order = _rng(workload, _ORDER).permutation(workload.requests)
    for i in range(share, workload.requests, of):
        if workload.prompts:
            content = _from_file(workload.prompts[i])
        else:
            content = _random_content(workload, i, int(inputs[i]), int(order[i]))
        path, body = _body(workload, content, int(outputs[i]))
        yield Job(i, float(due[i]), path, body, int(inputs[i]), int(outputs[i]))


def jobs(workload: Workload, share: int = 0, of: int = 1) -> list[Job]:
    """All of `each_job`."""
    return list(each_job(workload, share, of))


def _from_file(prompt: Prompt) -> dict[str, Any]:
    if prompt.messages is not None:
        return {"messages": prompt.messages}
    return {"prompt": prompt.ids if prompt.ids is not None else prompt.text}


def _random_content(workload: Workload, index: int, length: int, place: int) -> dict[str, Any]:
    """place: where the request stands in a shuffle; it decides the group of a shared prefix."""
    ids = workload.form == "ids" and workload.api != "chat"
    own = _draw(workload, _rng(workload, _OWN, index), length, ids)
    if workload.dataset.startswith("prefix:"):
        groups, shared, _, _ = prefix_shape(workload.dataset)
        head = _draw(workload, _rng(workload, _SHARED, place % groups), shared, ids)
        own[:shared] = head
    elif ids:
        own[: min(2, length)] = _distinct_start(workload, index)[:length]
    if ids:
        return {"prompt": own.tolist()}
    text = " ".join(_WORDS[i] for i in own)
    return (
        {"messages": [{"role": "user", "content": text}]}
        if workload.api == "chat"
        else {"prompt": text}
    )


def _draw(workload: Workload, rng: np.random.Generator, count: int, ids: bool) -> Ints:
    if ids:
        return rng.integers(*workload.id_range, count, endpoint=True)
    return rng.integers(0, len(_WORDS), count)


def _distinct_start(workload: Workload, index: int) -> Ints:
    """Two first ids that no other request of the workload has, so that nothing is shared."""
    low, high = workload.id_range
    span = high - low + 1
    return np.array([low + index % span, low + (index // span) % span])


def _body(workload: Workload, content: dict[str, Any], output_len: int) -> tuple[str, bytes]:
    if workload.api == "native":
        return "/generate", msgspec.json.encode(_native(workload, content, output_len))
    fields: dict[str, Any] = {
        "model": workload.model,
        **content,
        "max_tokens": output_len,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.ignore_eos:
        fields["ignore_eos"] = True
    fields.update(workload.extra)
    path = "/v1/chat/completions" if "messages" in content else "/v1/completions"
    return path, msgspec.json.encode(fields)


def _native(workload: Workload, content: dict[str, Any], output_len: int) -> dict[str, Any]:
    prompt = content["prompt"]
    sampling = {
        "max_new_tokens": output_len,
        "temperature": workload.temperature,
        "ignore_eos": workload.ignore_eos,
    }
    return {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "sampling_params": sampling,
        "stream": True,
        **workload.extra,
    }
