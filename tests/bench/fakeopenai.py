"""A small OpenAI-compatible SSE server over asyncio streams, in a thread, for the bench's tests."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class FakeOpenAI:
    """requests: the body of every completion that came. answer: what becomes of the next ones."""

    def __init__(self, answer: str = "stream", together: int = 1) -> None:
        self.answer, self.together = answer, together
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.live = self.most_live = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ", 2)[1]
                length = 0
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        length = int(line.partition(":")[2])
                body = await reader.readexactly(length)
                await self._reply(path, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return self._json(writer, 200, {"data": [{"id": "fake"}]})
        asked = json.loads(body)
        if path == "/tokenize":
            return self._json(writer, 200, {"tokens": [ord(c) for c in asked["prompt"]]})
        self.requests.append(asked)
        if path == "/generate":
            return await self._native(asked, writer)
        if self.answer == "refuse":
            return self._json(writer, 503, {"error": {"message": "still loading"}})
        if self.answer == "every-third" and len(self.requests) % 3 == 0:
            return self._json(writer, 503, {"error": {"message": "busy"}})
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        await self._stream(asked, path, writer)
        self.live -= 1

    async def _stream(self, asked: dict[str, Any], path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        n = asked["max_tokens"]
        choice = {"text": "a"} if path == "/v1/completions" else {"delta": {"content": "a"}}
        event = b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"
        for at in range(0, n, self.together):
            if self.answer == "cut" and at >= 2:
                writer.close()
                return
            writer.write(chunk(event) * min(self.together, n - at))
            await writer.drain()
            await asyncio.sleep(0)
        prompt = asked.get("prompt", "")
        usage = {"prompt_tokens": len(prompt), "completion_tokens": n}
        last = json.dumps({"choices": [], "usage": usage}).encode()
        writer.write(chunk(b"data: " + last + b"\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()

    async def _native(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        n, events = asked["sampling_params"]["max_new_tokens"], b""
        for count in range(1, n + 1):
            meta = {"prompt_tokens": len(asked["input_ids"]), "completion_tokens": count}
            meta["finish_reason"] = {"type": "length", "length": n} if count == n else None
            event = {"text": "a" * count, "output_ids": [1] * count, "meta_info": meta}
            events += chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + events + chunk(b"data: [DONE]\n\n")
        )
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _json(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )


@contextmanager
def running(fake: FakeOpenAI) -> Iterator[FakeOpenAI]:
    """Serves on a free port of 127.0.0.1 in a thread of its own."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = loop.create_task(fake.serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stops.append(stop)
        ready.set()
        await stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stops: list[asyncio.Event] = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stops[0].set)
        thread.join()
        loop.close()


if __name__ == "__main__":  # by hand, to see what one sending process can take
    with running(FakeOpenAI(together=int(sys.argv[1]) if len(sys.argv) > 1 else 1)) as served:
        print(served.url, flush=True)
        sys.stdin.read()
