"""RuntimeConfig: what the runtime is told. Frozen, in sections; a room is given its section only.

A field that may be left to us holds ``auto`` (or 0); `plan.resolve` answers those, and every
process of a run reads the resolved config from one file.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from appliance.errors import UsageError

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Policy = Literal["fcfs", "lpm", "dfs-weight", "lof", "random"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "dummy"]
Filter = Literal["auto", "sort", "search"]
AttentionBackend = Literal["auto", "flashinfer", "reference"]
Quantization = Literal["auto", "none", "fp8"]
KVDtype = Literal["auto", "model", "e4m3", "e5m2"]
ToolParser = Literal[
    "auto", "none", "harmony", "deepseek-v3", "kimi-k2", "glm45", "glm4", "qwen3-coder", "hermes",
    "mistral", "llama3", "pythonic", "json",
]  # fmt: skip
SocketMode = Literal["600", "660", "666"]
RequestLogMode = Literal["off", "on", "content"]
ReasoningParser = Literal["auto", "none", "harmony", "deepseek-r1", "qwen3", "think", "mistral"]


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    """Local folder with config.json, tokenizer and safetensors. Never a hub name."""
    id: str
    """The name the model was asked for by; answers to it over HTTP."""
    served_names: tuple[str, ...] = ()
    """Further names it answers to; `default` always works."""
    revision: str = ""
    """Commit of the files on the hub; empty for a folder of your own."""
    dtype: Dtype = "auto"
    """Of weights and activations; auto: as the checkpoint is stored, float32 on a CPU."""
    quantization: Quantization = "auto"
    """auto: as the checkpoint is stored; fp8 rounds the weights of a plain one as they are read."""
    kv_dtype: KVDtype = "auto"
    """Of the keys and values that are kept; model: as the model computes; the others: 8 bits."""
    load_format: LoadFormat = "auto"
    """dummy: made-up weights of the model's shape, for measuring."""
    context: NotNegative = 0
    """Longest prompt + output in tokens; 0: the longest that the model knows and memory fits."""
    chat_template: str = ""
    """File of a Jinja template that makes messages a prompt; empty: the model's own."""
    tool_parser: ToolParser = "auto"
    """How the model writes tool calls; auto: as its chat template says."""
    reasoning_parser: ReasoningParser = "auto"
    """How the model marks its thoughts; auto: as its chat template says."""


class ServeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine keys are needed, or `no_auth`."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any that is free."""
    uds: str = ""
    """Path of a Unix socket to listen on in place of host and port."""
    uds_mode: SocketMode = "600"
    """Who may use that socket: 600 this user; 660 its group too; 666 everybody on this machine,
    for whom keys are needed, or `no_auth`."""
    frontends: NotNegative = 0
    """HTTP processes; 0: one for each 4 cores, at most 8."""
    max_queue: Positive = 4096
    """Live requests one frontend holds before it answers 429."""
    max_connections_per_address: NotNegative = 1024
    """Connections that one frontend holds with one address on another machine; with more it
    answers 429. 0: any number, as behind a proxy on another machine."""
    keep_alive_comment_s: float = 0.0
    """Seconds of silence before an SSE comment is sent on chat streams; 0: never."""
    keys_file: str = ""
    """File of the API keys that are asked for; empty: none are."""
    no_auth: bool = False
    """Anybody is answered without a key, whoever can reach the address."""
    drain_s: Annotated[float, Meta(ge=0.0)] = 30.0
    """Seconds that live requests have to end in when the run is told to stop by a signal."""
    request_log: RequestLogMode = "on"
    """A JSON line for each request that has ended; content: with its prompt and answer."""
    request_log_mib: Positive = 16
    """Most MiB of one of its files; then a new one is begun."""
    request_log_files: Positive = 5
    """How many of them each frontend keeps."""


class ScheduleConfig(Struct, frozen=True, forbid_unknown_fields=True):
    policy: Policy = "fcfs"
    """Which waiting request is next: fcfs by arrival, lpm by the longest prefix that is cached,
    dfs-weight by the busiest branch of the prefix tree, lof by the longest output that may come (a
    burst ends sooner, short ones wait while long ones come), random."""
    page_size: Positive = 16
    """Tokens of one page of the KV cache."""
    chunk: NotNegative = 0
    """Prompt tokens of one prefill step; 0: by GPU class."""
    max_prefill: Positive = 16384
    """Most prompt tokens of one step when the chunk is larger than one request."""
    mixed_chunk: bool = False
    """Decode rows join the prefill step."""
    mixed_tokens: NotNegative = 0
    """Decode rows join a prefill step that has at most so many tokens with them, whatever
    mixed_chunk says; 0: as many as a captured prefill takes, 1: never."""
    max_running: NotNegative = 0
    """Most requests that hold a slot; 0: by GPU class and page pool."""
    conservativeness: Annotated[float, Meta(ge=0.0, le=10.0)] = 1.0
    """Scales what is reserved at admission for the tokens that running requests take yet: at most a
    share of max_tokens, at most what those took that stopped before."""
    prefix_cache: bool = True
    """Pages of prompts that have been computed are kept for those that begin alike."""
    share_from: NotNegative = 0
    """Pages a decode step must save by reading those that rows share once, before it does so; 0: by
    what a page holds, where that is FlashInfer's to read, else never."""
    beside_rows: NotNegative = 0
    """Decode rows from which on a long prefill runs beside their steps, on the same GPU at the same
    time; 0: by rule, where that can be, else never."""
    beside_filled: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.6
    """Share of the pages in use from which on it does so: with fewer, steps have fewer rows than
    soon, and what they do then costs more than it will."""
    depth: Annotated[int, Meta(ge=0, le=1)] = 1
    """Flights kept in the air beside the one being settled: 0 plain, 1 overlapped."""
    jump_forward: bool = True
    """Text that a grammar forces is appended without decoding it."""
    retract_every: NotNegative = 0
    """Tests only: retract the newest running request every so many decode steps."""


class EngineConfig(Struct, frozen=True, forbid_unknown_fields=True):
    device: Device = "auto"
    """Where the model is computed; auto: NVIDIA GPUs where there are any."""
    tp: Positive = 1
    """GPUs that share one copy of the model."""
    replicas: Positive = 1
    """Copies of the model, each an engine of its own; a request goes to the least busy."""
    memory_fraction: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Share of a GPU's memory for weights, pages and workspace together; 0: all but a margin."""
    max_total_tokens: NotNegative = 0
    """Tokens in the page pool; 0: what is measured to be free after load."""
    attention: AttentionBackend = "auto"
    """Which kernels; auto: flashinfer on NVIDIA, else reference, which is plain torch."""
    filter: Filter = "auto"
    """How top-k, top-p and min-p find their tokens; auto: search, which sorts
    nothing, on NVIDIA GPUs; sort elsewhere and in float32."""
    fuse_rounding: bool = True
    """Norms and activations round to 8 bits themselves what an 8-bit linear takes."""
    graphs: bool = True
    """Passes are captured as CUDA graphs after load."""
    graph_batch_sizes: tuple[int, ...] = ()
    """Row counts at which decode is captured; empty: by GPU class."""
    ready_early: bool = True
    """Ready with the first captured passes; the others are captured while it serves. Where one
    process has more to do with the GPU, as with `appliance.Engine`, all are captured before."""
    try_links: bool = True
    """GPUs that share a model exchange some bytes in pairs before it is loaded: a pair that hangs
    or is slow has a name then. Two GPUs take 0.7 s for it, four 1.9."""
    few_rows: bool = True
    """Captured decode passes of 1 row (2 with 8-bit weights) run as one kernel, where model and GPU
    allow it; of up to 8 where few rows have no other kernels of ours."""
    even_decode: bool = True
    """Attention of decode rows divides their pages evenly, whatever their lengths, by a kernel of
    ours, which turns and stores captured ones of up to 64 rows too, where model and GPU allow it;
    else FlashInfer's."""
    skinny: bool = True
    """Captured passes of up to 64 tokens multiply by kernels of ours, which read weights at nearly
    the speed of a copy, where model and GPU allow it; else by the library's."""
    compile: bool = False
    """torch.compile makes one kernel of each chain that chooses tokens: draws, filters, penalties,
    masks. Of use on a CPU with many streams and a large vocabulary: of 150,000 tokens a draw takes
    a fifth of its time, which saves 0.8 ms a row. The first start takes some 25 s longer, others 5,
    and 200 MB. On GPUs all of these have kernels of their own, but in float32."""
    threads: NotNegative = 0
    """CPU threads of one rank; 0: cores divided by ranks."""
    seed: int = 0
    """Of the made-up weights of `load_format` dummy."""
    profile_steps: NotNegative = 0
    """Steps to write a torch trace of, soon after the start; 0: none."""


class RuntimeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    run: str
    """Name of the run; its folder is paths.run_dir(run)."""
    dir: str
    """Folder of sockets and status files of this run."""
    model: ModelConfig
    profile: str = "none"
    """Name of the profile the values came from."""
    serve: ServeConfig = ServeConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


LIVE = frozenset(
    {
        "log_level", "model.served_names", "serve.drain_s", "serve.keep_alive_comment_s",
        "serve.keys_file", "serve.max_connections_per_address", "serve.max_queue",
        "serve.no_auth", "serve.request_log", "serve.request_log_files", "serve.request_log_mib",
    }
)  # fmt: skip
"""What a reload changes in a run that serves."""
AT_ENGINE_START = frozenset(
    {
        "engine.profile_steps", "schedule.conservativeness", "schedule.depth",
        "schedule.jump_forward", "schedule.mixed_chunk", "schedule.policy",
        "schedule.prefix_cache", "schedule.retract_every",
    }
)  # fmt: skip
"""What a reload hands to each engine when it starts again: settings that neither a rule nor the
memory plan asks about, so that they hold alone. All others want a start of the whole run."""


def setting(config: RuntimeConfig, key: str) -> Any:
    """The value of a dotted setting, such as serve.port or log_level."""
    value: Any = msgspec.to_builtins(config)
    for name in key.split("."):
        value = value[name]
    return value


def changed(old: RuntimeConfig, new: RuntimeConfig) -> dict[str, Any]:
    """Dotted setting -> its value in `new`, as plain data, where that is another than in `old`."""
    before, now = msgspec.to_builtins(old), msgspec.to_builtins(new)
    found: dict[str, Any] = {}
    for key, value in now.items():
        parts = value if isinstance(value, dict) else {"": value}
        olds = before[key] if isinstance(value, dict) else {"": before[key]}
        found |= {f"{key}.{n}".rstrip("."): v for n, v in parts.items() if olds[n] != v}
    return found


def replaced(config: RuntimeConfig, values: Mapping[str, Any]) -> RuntimeConfig:
    """With other values for dotted settings. UsageError for one that is none or cannot be."""
    data: dict[str, Any] = msgspec.to_builtins(config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (data[section] if section else data)[name] = value
    try:
        return msgspec.convert(data, RuntimeConfig)
    except msgspec.ValidationError as e:
        raise UsageError(f"these settings cannot be: {e}.") from e


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_config(path: Path) -> RuntimeConfig:
    """Reads a resolved config. UsageError when it cannot be read or has a wrong field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RuntimeConfig)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except msgspec.DecodeError as e:
        raise UsageError(f"{path} is not a runtime config: {e}") from e


def write_config(config: RuntimeConfig, path: Path) -> None:
    """Who reads meanwhile sees the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1))
    temporary.replace(path)
