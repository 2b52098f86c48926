"""Answers HTTP with the cause of failure when a run has failed and no frontend lives to do it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

from appliance.supervisor.replica import Death

_HEAD = 64 << 10
_PATIENCE_S = 5.0


class LastWord:
    """503 with OpenAI's error object, to every request on the run's port."""

    def __init__(self, listener: socket.socket, death: Death) -> None:
        self._listener = listener
        message = "the appliance has failed: " + death.message.replace("\n", "; ")
        error = {"message": message, "type": "server_error", "code": "engine_failed"}
        body = json.dumps({"error": error | {"param": None}}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n"
        )
        self._answer = head.encode() + body
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        # a copy: closing the server must not close the socket that was lent, nor remove its file
        lent = self._listener.dup()
        if lent.family != socket.AF_UNIX:
            self._server = await asyncio.start_server(self._serve, sock=lent)
        elif sys.version_info >= (3, 13):
            self._server = await asyncio.start_unix_server(
                self._serve, sock=lent, cleanup_socket=False
            )
        else:
            self._server = await asyncio.start_unix_server(self._serve, sock=lent)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                seen = b""
                while b"\r\n\r\n" not in seen and len(seen) < _HEAD:
                    piece = await reader.read(_HEAD)
                    if not piece:
                        break
                    seen += piece
                writer.write(self._answer)
                await writer.drain()
        except (TimeoutError, OSError):
            pass
        finally:
            writer.close()
