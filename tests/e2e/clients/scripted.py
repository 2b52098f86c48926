"""A frontend whose engine makes one tool call, then quotes what the tool said.

    python tests/e2e/clients/scripted.py --port 8103 --call '{"name": "Read", "arguments": {}}'

What a model would have to be good for is written down beforehand, so that the way from a client's
request to its tool and back is shown with a model of any size. The frontend is the real one, with
the embedded model's tokenizer and template. A request that does not offer the tool gets words.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import tempfile
import threading
from pathlib import Path

from tokenizers import Tokenizer

from appliance import paths
from appliance.runtime.api.app import serve
from appliance.runtime.config import ModelConfig, RuntimeConfig, ServeConfig
from appliance.runtime.model.registry import read_spec
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.channel import EngineDoor
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Deltas, TokenDelta, Welcome
from appliance.runtime.wire.request import TokenRequest, ids_from_bytes
from appliance.status import StatusPipe

FOLDER = Path(__file__).parents[3] / "appliance" / "default_model"
CONTEXT = 1 << 17
TOLD = re.compile(r"<\|im_start\|>tool\n<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)
TOOLS = re.compile(r"<tools>\n(.*?)\n</tools>", re.DOTALL)


def offered(prompt: str) -> list[str]:
    """The tools' names, as the embedded model's template lists them: one JSON object a line."""
    listed = TOOLS.search(prompt)
    lines = listed[1].splitlines() if listed else []
    return [json.loads(line)["function"]["name"] for line in lines]


def answer(prompt: str, call: str, words: str) -> str:
    """What a model would say: the call, what the tool told after the last turn, or the words."""
    told = TOLD.findall(prompt.rpartition("<|im_start|>user")[2])
    if told:
        return f"The tool said: {told[-1][:400]}"
    if call and json.loads(call)["name"] in offered(prompt):
        return f"I will look.\n<tool_call>\n{call}\n</tool_call>"
    return words


def engine(path: Path, call: str, words: str) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    door = EngineDoor(path, Welcome(VERSION, 1, CONTEXT, 1 << 20, 16, 64, 3072, os.getpid()))
    while True:
        for peer, message in door.receive(1.0):
            if not isinstance(message, TokenRequest):
                continue
            ids = ids_from_bytes(message.prompt).tolist()
            prompt = tokenizer.decode(ids, skip_special_tokens=False)
            said = answer(prompt, call, words)
            tools = " ".join(offered(prompt))
            print(f"{len(ids)} tokens, offers {tools or 'nothing'}: {said!r}", file=sys.stderr)
            out = [*tokenizer.encode(said).ids, min(message.sampling.stop_ids, default=4)]
            for at, id in enumerate(out):
                last = "stop" if at == len(out) - 1 else ""
                delta = TokenDelta(message.rid, at, (id,), last, matched=id if last else -1)
                door.send(peer, Deltas((delta,), None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8103)
    parser.add_argument("--call", default="", help="name and arguments of the call, as JSON")
    parser.add_argument("--say", default="Hello.", help="to whom the tool is not offered")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apl") as folder:
        run = Path(folder)
        config = RuntimeConfig(
            run="scripted",
            dir=str(run),
            model=ModelConfig(path=str(FOLDER), id="scripted", context=CONTEXT),
            serve=ServeConfig(frontends=1),
        )
        threading.Thread(
            target=engine, args=(paths.engine_socket(run, 0), args.call, args.say), daemon=True
        ).start()
        listener = socket.create_server(("127.0.0.1", args.port))
        text = TextWorker(FOLDER, read_spec(FOLDER), "scripted")
        asyncio.run(serve(config, text, 0, listener.fileno(), StatusPipe()))


if __name__ == "__main__":
    main()
