"""The killable box that compiles grammars: a child process with limits on memory, CPU and time.

A grammar is text from a stranger, and a short one may take minutes or gigabytes to compile. Here it
takes the box with it, and nobody else. `python -m …grammar.box` is the child: msgpack frames on
stdin and stdout; the end of stdin ends it.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import subprocess
import sys
import time
from typing import BinaryIO

import msgspec
from msgspec import Struct

from appliance.errors import EngineError
from appliance.runtime.schedule.grammar.compile import Compiled, Libraries, Refused, Words
from appliance.runtime.wire.request import Grammar

START_S = 120.0
"""Seconds the child may take to load the libraries; a busy disk is slow, not broken."""
COMPILE_S = 2.0
"""Wall and CPU seconds of one grammar."""
MEMORY = 1 << 30
"""Bytes a grammar may take beside what the libraries take themselves."""
_LENGTH = struct.Struct("<I")


class _Begin(Struct, array_like=True):
    tokens: list[bytes]
    vocab: int
    cpu_s: float
    memory: int


class _Reply(Struct, array_like=True):
    made: Compiled | None = None
    error: str = ""
    code: str = ""


class Box:
    """Blocking, for one thread. It is started when first needed, and again after a kill."""

    def __init__(
        self, words: Words, vocab: int, limit_s: float = COMPILE_S, memory: int = MEMORY
    ) -> None:
        self._begin = _Begin(words.tokens, vocab, limit_s, memory)
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def compile(self, grammar: Grammar) -> Compiled:
        """Refused when the grammar is wrong or takes too much; EngineError without a box."""
        child = self._running()
        limit_s = self._begin.cpu_s
        answer = None
        if _write(child, msgspec.msgpack.encode(grammar)):
            answer = _read(child, limit_s)
        if answer is None:
            self.close()
            raise Refused(
                f"the grammar needs more than {limit_s:g} s or {self._begin.memory >> 20} MiB to "
                "compile; make it smaller.",
                "grammar_too_complex",
            )
        reply = msgspec.msgpack.decode(answer, type=_Reply)
        if reply.made is None:
            raise Refused(reply.error, reply.code)
        return reply.made

    def end(self) -> None:
        """For good, and from any thread: whoever waits for the child learns that it is gone."""
        self._ended = True
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        if self._ended:
            raise EngineError("the process that compiles grammars has been ended.")
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        if self._ended:
            self._child.kill()
        ready = None
        if _write(self._child, msgspec.msgpack.encode(self._begin)):
            ready = _read(self._child, START_S)
        if ready is None:
            self.close()
            raise EngineError("the process that compiles grammars does not start.")
        return self._child


def _write(child: subprocess.Popen[bytes], data: bytes) -> bool:
    assert child.stdin is not None
    whole = memoryview(_LENGTH.pack(len(data)) + data)
    try:
        while whole:
            whole = whole[child.stdin.write(whole) :]
    except (BrokenPipeError, OSError):
        return False
    return True


def _read(child: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
    """One frame; None when the child ends or the time does."""
    assert child.stdout is not None
    end = time.monotonic() + limit_s
    got = bytearray()
    while len(got) < 4 or len(got) < 4 + _LENGTH.unpack_from(got)[0]:
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(child.stdout.fileno(), 1 << 20)
        if not part:
            return None
        got += part
    return bytes(got[4:])


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    begin = msgspec.msgpack.decode(_frame(source), type=_Begin)
    libraries = Libraries(Words(begin.tokens, _spell_by_byte(begin.tokens)), begin.vocab)
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + begin.memory, used + begin.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _send(sink, b"ready")
    while True:
        data = _frame(source)
        if not data:
            return
        spent = int(time.process_time() + begin.cpu_s) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.RLIM_INFINITY))
        _send(sink, msgspec.msgpack.encode(_answer(libraries, data)))


def _answer(libraries: Libraries, data: bytes) -> _Reply:
    try:
        return _Reply(made=libraries.compile(msgspec.msgpack.decode(data, type=Grammar)))
    except Refused as e:
        return _Reply(error=str(e), code=e.code)
    except (MemoryError, RecursionError):
        return _Reply(error="the grammar is too large or too deep.", code="grammar_too_complex")


def _spell_by_byte(tokens: list[bytes]) -> _ByByte:
    return _ByByte({t: i for i, t in enumerate(tokens) if len(t) == 1})


class _ByByte:
    """Stands in for the tokenizer, which compiling does not need."""

    def __init__(self, ids: dict[bytes, int]) -> None:
        self._ids = ids

    def __call__(self, text: str) -> list[int]:
        return [self._ids.get(bytes([b]), 0) for b in text.encode()]


def _frame(source: BinaryIO) -> bytes:
    head = source.read(4)
    return source.read(_LENGTH.unpack(head)[0]) if len(head) == 4 else b""


def _send(sink: BinaryIO, data: bytes) -> None:
    sink.write(_LENGTH.pack(len(data)) + data)
    sink.flush()


def main() -> None:
    """The libraries may print; what they print goes to stderr, and frames alone to stdout."""
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
