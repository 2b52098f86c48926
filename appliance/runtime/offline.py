"""All of the runtime in one process, for scripts and tests: Engine(folder).generate(prompts).

    engine = Engine("path/to/model")
    print(engine.generate("The capital of France is", {"max_tokens": 8}).text)
    engine.close()

The scheduler and the executor run in a thread of their own; with tp > 1 the other ranks are
processes that end with this one.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import msgspec

from appliance import hardware, paths
from appliance.errors import EngineError, RequestError, UsageError
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, write_config
from appliance.runtime.engine.profile import TracingExecutor, span
from appliance.runtime.engine.rank import RankBuilder, RingExecutor
from appliance.runtime.generation import (
    Generation,
    asked_of,
    joined,
    per_prompt,
    with_logprobs,
)
from appliance.runtime.model.registry import read_spec
from appliance.runtime.plan import resolve
from appliance.runtime.schedule.grammar.compile import Words
from appliance.runtime.schedule.grammar.shelf import Shelf
from appliance.runtime.schedule.loop import Loop
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.spec import ModelSpec
from appliance.runtime.text.vocabulary import Vocabulary
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire import vectors
from appliance.runtime.wire.delta import Deltas, ToFrontend, TokenDelta
from appliance.runtime.wire.request import Abort, FlushCache, ToEngine, TokenRequest
from appliance.runtime.wire.ring import RingWriter
from appliance.runtime.wire.step import Executor
from appliance.runtime.wire.text import Chat, Prompt, TextDelta, TextRequest

_PEER = 1
AnyPrompt = str | Sequence[int] | Chat
AnySampling = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
Sink = Callable[[TokenDelta], None]


class _LocalDoor:
    """Stands in for the socket: messages by a queue, deltas by a call in the engine's thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self.broken: str = ""

    def put(self, message: ToEngine, sink: Sink | None = None) -> None:
        with self._lock:
            if self.broken:
                raise EngineError(self.broken)
            if isinstance(message, TokenRequest) and sink is not None:
                self._sinks[message.rid] = sink
        self._queue.put(message)

    def forget(self, rid: int) -> None:
        with self._lock:
            self._sinks.pop(rid, None)

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        got: list[tuple[int, ToEngine | None]] = []
        try:
            got.append(
                (_PEER, self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait())
            )
            while True:
                got.append((_PEER, self._queue.get_nowait()))
        except queue.Empty:
            return got

    def send(self, peer: int, message: ToFrontend) -> None:
        if not isinstance(message, Deltas):
            return
        for delta in message.each():
            with self._lock:
                sink = self._sinks.get(delta.rid)
                if delta.finish:
                    self._sinks.pop(delta.rid, None)
            if sink is not None:
                sink(delta)

    def fail(self, cause: str) -> None:
        """Ends every request that still waits."""
        with self._lock:
            self.broken = cause
            sinks, self._sinks = self._sinks, {}
        for rid, sink in sinks.items():
            sink(TokenDelta(rid=rid, index=0, ids=(), finish="error", error=cause))


class Engine:
    """A model in this process.

    model: folder with config.json, tokenizer and safetensors; None: the embedded default.
    settings: dotted RuntimeConfig fields, such as {"schedule.depth": 0, "engine.tp": 2}; what is
    left out is resolved for this machine as `appliance up` does.

    UsageError for a setting or a checkpoint that makes no sense, NotFoundError for an architecture
    that is not known, DoesNotFitError or HardwareError when this machine cannot hold it.
    Close it, or use it in a `with` block.
    """

    def __init__(
        self, model: str | Path | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        folder = Path(model) if model is not None else paths.default_model()
        self.spec: ModelSpec = read_spec(folder)
        self._folder = tempfile.TemporaryDirectory(prefix="appliance-")
        with ExitStack() as undo:  # what was begun is ended when the rest fails
            undo.callback(self._folder.cleanup)
            self._begin(folder, Path(self._folder.name), settings or {}, undo)
            undo.pop_all()

    def _begin(self, folder: Path, run: Path, settings: Mapping[str, Any], undo: ExitStack) -> None:
        asked = RuntimeConfig(
            run=run.name,
            dir=str(run),
            model=ModelConfig(path=str(folder), id=folder.name),
            # who waits for the device in another thread would end a capture, or be refused
            engine=EngineConfig(ready_early=False),
        )
        asked, sources = _with_settings(asked, settings)
        self.config = resolve(asked, self.spec, hardware.detect(), sources).config
        self._ranks = self._start_ranks(run)
        undo.callback(self._end_ranks)
        self._text = (
            TextWorker(folder, self.spec, chat_template=self.config.model.chat_template)
            if (folder / "tokenizer.json").is_file()
            else None
        )
        if self._text is not None:
            undo.callback(self._text.close)
        self._door = _LocalDoor()
        executor, pages = self._build(run)
        self.pages = pages
        self._shelf = Shelf(self.spec.vocab, lambda: _words(folder))
        self.scheduler = Scheduler(
            self.config.schedule,
            pages,
            self.config.model.context,
            self.config.schedule.max_running,
            self.spec.vocab,
            self._shelf,
        )
        traced = self.config.engine.profile_steps
        if traced:
            executor = TracingExecutor(executor, traced, paths.trace_file(self.config.run, 0))
        self._loop = Loop(
            self.scheduler,
            executor,
            self._door,
            self.config.schedule.depth,
            span=span if traced else None,
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; it is one prompt
        self, prompts: str | Chat, sampling: AnySampling = None
    ) -> Generation: ...
    @overload
    def generate(
        self, prompts: Sequence[AnyPrompt], sampling: AnySampling = None
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt] | None = None,
        sampling: AnySampling = None,
        *,
        prompt: str | list[str] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        sampling_params: AnySampling = None,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        stream: Literal[False] = False,
    ) -> Generation | list[Generation]: ...
    @overload
    def generate(
        self,
        prompts: AnyPrompt | None = None,
        sampling: AnySampling = None,
        *,
        prompt: str | None = None,
        input_ids: Sequence[int] | None = None,
        sampling_params: AnySampling = None,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        stream: Literal[True],
    ) -> Iterator[Generation]: ...
    def generate(
        self,
        prompts: Any = None,
        sampling: AnySampling = None,
        *,
        prompt: Any = None,
        input_ids: Any = None,
        sampling_params: AnySampling = None,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        stream: bool = False,
    ) -> Any:
        """Answers one prompt (text, chat, `input_ids`) by a Generation, several by a list in order.

        sampling: fields of AskedSampling, `stop`, `skip_special_tokens`, and one of `json_schema`,
        `regex`, `ebnf`, `structural_tag` and `grammar`; or SGLang's sampling_params. One for all
        prompts or one for each; without max_tokens an answer has at most 128. return_logprob,
        logprob_start_len, top_logprobs_num: as SGLang's. stream: an iterator over one answer as it
        grows. RequestError for a prompt or a value that cannot be served, EngineError when the
        engine has died.
        """
        one, asked = _prompts(prompts, prompt, input_ids)
        wanted = [
            with_logprobs(each, return_logprob, logprob_start_len, top_logprobs_num)
            for each in per_prompt(sampling or sampling_params, len(asked))
        ]
        if stream:
            if not one:
                raise RequestError("one prompt is streamed at a time.", param="stream")
            return self.stream(asked[0], wanted[0]).growing()
        streams = [self.stream(p, w) for p, w in zip(asked, wanted, strict=True)]
        for each in streams:
            each.begin()
        answers = [each.whole() for each in streams]
        return answers[0] if one else answers

    async def async_generate(
        self,
        prompt: AnyPrompt | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        input_ids: Sequence[int] | None = None,
        sampling_params: Mapping[str, Any] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        stream: bool = False,
    ) -> Any:
        """Answers one prompt; many may be awaited at once and share batches.

        A Generation, or with `stream` an asynchronous iterator over it as it grows. Arguments and
        errors as those of `generate`.
        """
        one, asked = _prompts(prompt, None, input_ids)
        if not one:
            raise RequestError("await one prompt at a time; they share batches.", param="prompt")
        wanted = with_logprobs(
            sampling or sampling_params or {}, return_logprob, logprob_start_len, top_logprobs_num
        )
        growing = self._async_growing(asked[0], wanted)
        if stream:
            return growing
        return [answer async for answer in growing][-1]

    async def _async_growing(
        self, prompt: AnyPrompt, sampling: Mapping[str, Any]
    ) -> AsyncIterator[Generation]:
        async for delta, answer in self._async_deltas(prompt, sampling):
            answer.add(delta)
            yield answer.so_far()

    def encode(self, prompts: Sequence[AnyPrompt]) -> list[list[float]]:
        """Embeddings, one of the model's width for each prompt, in order. UsageError when the model
        is not made for them."""
        if not self.spec.pooling:
            raise UsageError(
                f"{self.config.model.id} is a generative model; it has no embeddings to give.",
                "Ask generate() for text, or serve an embedding model.",
            )
        found = self._pooled(prompts, {"pool": True})
        return [vectors.embedding(f, self.spec.normalizes).tolist() for f in found]

    def classify(self, prompts: Sequence[AnyPrompt]) -> list[list[float]]:
        """The scores of the model's classes (`spec.labels`), as its head gives them, in order.
        UsageError when it has no such head."""
        if not self.spec.labels:
            raise UsageError(
                f"{self.config.model.id} has no head that tells classes.",
                "Ask score() for the probabilities of tokens, or load a …ForSequenceClassification "
                "checkpoint.",
            )
        return [vectors.values(f).tolist() for f in self._pooled(prompts, {"pool": True})]

    def score(
        self,
        query: str | Sequence[int],
        items: Sequence[str] | Sequence[Sequence[int]],
        label_token_ids: Sequence[int],
        apply_softmax: bool = False,
        item_first: bool = False,
    ) -> list[list[float]]:
        """For each item, how probable each of the label tokens is behind query and item.

        apply_softmax: as shares of these tokens alone. item_first: the item stands before the
        query. RequestError names what cannot be served.
        """
        prompts = joined(query, items, item_first)
        if not label_token_ids:
            raise RequestError("give the ids of the label tokens.", param="label_token_ids")
        found = self._pooled(prompts, {"labels": tuple(label_token_ids), "temperature": 0.0})
        return [vectors.shares(f, apply_softmax).tolist() for f in found]

    def _pooled(self, prompts: Sequence[AnyPrompt], asked: Mapping[str, Any]) -> list[bytes]:
        streams = [self.stream(p, {"max_tokens": 0, **asked}) for p in prompts]
        for stream in streams:
            stream.begin()
        return [b"".join(d.pooled for d in stream) for stream in streams]

    def shutdown(self) -> None:
        """SGLang's name for `close`."""
        self.close()

    async def async_stream(
        self, prompt: AnyPrompt, sampling: Mapping[str, Any] | None = None
    ) -> AsyncIterator[TextDelta]:
        """The deltas of one answer; leaving the loop early aborts the request. Errors as those of
        `generate`."""
        async for delta, _ in self._async_deltas(prompt, sampling):
            yield delta

    def stream(self, prompt: AnyPrompt, sampling: Mapping[str, Any] | None = None) -> Stream:
        """An iterator over the deltas of one answer; closing it early aborts the request. Errors as
        those of `generate`."""
        return Stream(self._door, *self._prepare(prompt, sampling))

    def flush_cache(self) -> None:
        """Gives up the prefix cache, but for pages that live requests use."""
        self._door.put(FlushCache())

    def close(self) -> None:
        """Ends the engine and its ranks; requests in flight end with an error."""
        self._loop.stop()
        self._thread.join(timeout=30)
        self._door.fail("the engine was closed.")
        self._shelf.close()
        if self._text is not None:
            self._text.close()
        self._device.close()
        self._end_ranks()
        self._folder.cleanup()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _async_deltas(
        self, prompt: AnyPrompt, sampling: Mapping[str, Any] | None
    ) -> AsyncIterator[tuple[TextDelta, Generation]]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[TokenDelta] = asyncio.Queue()
        request, feed, answer = self._prepare(prompt, sampling)

        def sink(delta: TokenDelta) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, delta)

        self._door.put(request, sink)
        finished = False
        try:
            while not finished:
                delta = _checked(feed(await arrived.get()))
                finished = bool(delta.finish)
                yield delta, answer
        finally:
            self._door.forget(request.rid)
            self._door.put(Abort(request.rid))

    def _prepare(
        self, prompt: AnyPrompt, sampling: Mapping[str, Any] | None
    ) -> tuple[TokenRequest, Callable[[TokenDelta], TextDelta], Generation]:
        asked = asked_of(sampling or {})
        whole: Prompt = prompt if isinstance(prompt, str | Chat) else tuple(prompt)
        request = TextRequest(
            rids=(secrets.randbits(62),),
            prompt=whole,
            sampling=asked.sampling,
            stop=asked.stop,
            include_stop=asked.include_stop,
            skip_special_tokens=asked.skip_special_tokens,
            grammar=asked.grammar,
            arrival=time.monotonic(),
            default_max_tokens=128,
        )
        if self._text is None:
            raise UsageError(
                f"{self.config.model.path} holds no tokenizer.json.",
                "Save the model's tokenizer beside its weights.",
            )
        tokens = self._text.tokenize_now(request, self.config.model.context)[0]
        answer = Generation(prompt_tokens=len(tokens.prompt) // 4)
        return tokens, self._text.stream(request, tokens).feed, answer

    def _end_ranks(self) -> None:
        for rank in self._ranks:
            if rank.stdin is not None:
                rank.stdin.close()
            rank.wait(timeout=30)

    def _start_ranks(self, run: Path) -> list[subprocess.Popen[bytes]]:
        if self.config.engine.tp == 1:
            return []
        write_config(self.config, paths.config_file(run))
        base = [sys.executable, "-m", "appliance.runtime", "--config", str(paths.config_file(run))]
        return [
            subprocess.Popen([*base, "--role", "engine", "--rank", str(r)], stdin=subprocess.PIPE)
            for r in range(1, self.config.engine.tp)
        ]

    def _build(self, run: Path) -> tuple[Executor, int]:
        tp = self.config.engine.tp
        ring_path = paths.ring_file(run, 0).with_name("ranks-0.ring.0")
        ring = RingWriter(ring_path, tp - 1) if tp > 1 else None
        meeting = paths.rendezvous_file(run, 0).with_name("ranks-0.store.0")
        built = RankBuilder(
            self.config, self.spec, 0, 0, meeting if tp > 1 else None, lambda *_: None
        ).build()
        self._device, self.facts = built.executor, built.facts
        if ring is None:
            return built.executor, built.pages
        return RingExecutor(built.executor, ring), built.pages

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception as e:
            self._door.fail(f"the engine died: {type(e).__name__}: {e}")
            raise


class Stream(Iterator[TextDelta]):
    """Deltas of one answer. `begin` sends the request; the first `next` does so otherwise.

    times: perf_counter's seconds at which the engine gave each delta that has tokens.
    """

    def __init__(
        self,
        door: _LocalDoor,
        request: TokenRequest,
        feed: Callable[[TokenDelta], TextDelta],
        answer: Generation,
    ) -> None:
        self._door, self._request, self._feed = door, request, feed
        self.answer = answer
        self.times = array("d")
        self._arrived: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        self._begun = self._ended = False

    def begin(self) -> None:
        """Sends the request, once. EngineError when the engine has died or was closed."""
        if not self._begun:
            self._begun = True
            self._door.put(self._request, self._arrive)

    def _arrive(self, delta: TokenDelta) -> None:
        if delta.ids:
            self.times.append(time.perf_counter())
        self._arrived.put(delta)

    def __next__(self) -> TextDelta:
        if self._ended:
            raise StopIteration
        self.begin()
        delta = _checked(self._feed(self._arrived.get()))
        if delta.finish:
            self.close()
        return delta

    def whole(self) -> Generation:
        """The answer when it is complete. RequestError or EngineError when it ends with one."""
        for delta in self:
            self.answer.add(delta)
        return self.answer

    def growing(self) -> Iterator[Generation]:
        """Copies of the answer after each delta; leaving the loop early aborts the request."""
        try:
            for delta in self:
                self.answer.add(delta)
                yield self.answer.so_far()
        finally:
            self.close()

    def close(self) -> None:
        """Aborts what has not ended."""
        if self._begun and not self._ended:
            self._door.forget(self._request.rid)
            if not self._door.broken:
                self._door.put(Abort(self._request.rid))
        self._ended = True


def _prompts(prompts: Any, prompt: Any, input_ids: Any) -> tuple[bool, list[AnyPrompt]]:
    """(one was asked for, all of them). RequestError unless exactly one argument is given."""
    given = [value for value in (prompts, prompt, input_ids) if value is not None]
    if len(given) != 1:
        raise RequestError("give one of prompt and input_ids.", param="prompt")
    if isinstance(given[0], str | Chat):
        return True, [given[0]]
    several = list(given[0])
    if several and isinstance(several[0], int):
        return True, [tuple(several)]
    return False, several


def _checked(delta: TextDelta) -> TextDelta:
    if delta.finish == "error":
        raise RequestError(delta.error, code=delta.code) if delta.code else EngineError(delta.error)
    return delta


def _words(folder: Path) -> Words:
    """The model's vocabulary for its grammars."""
    vocabulary = Vocabulary.load(folder)
    return Words(vocabulary.spelled(), lambda text: vocabulary.encode(text, False))


def _with_settings(
    config: RuntimeConfig, settings: Mapping[str, Any]
) -> tuple[RuntimeConfig, dict[str, str]]:
    """`config` with dotted fields replaced, and who set them. UsageError for an unknown one."""
    plain = msgspec.to_builtins(config)
    for name, value in settings.items():
        section, _, key = name.partition(".")
        if not isinstance(plain.get(section), dict) or key not in plain[section]:
            raise UsageError(f"there is no setting {name!r}.")
        plain[section][key] = value
    try:
        return msgspec.convert(plain, RuntimeConfig), dict.fromkeys(settings, "caller")
    except msgspec.ValidationError as e:
        raise UsageError(f"settings: {e}") from e
