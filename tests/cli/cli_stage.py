"""A run of stand-ins, and a server that answers like a model."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tiny_llama import LLAMA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from appliance import paths
from appliance.cli.given import Given, write_given
from appliance.client import Client
from appliance.profiles.compose import compose, config_files, file_values
from appliance.runtime.config import ModelConfig, write_config
from appliance.supervisor.claim import RunLock, bind, held
from appliance.supervisor.daemon import supervise

sys.path.insert(0, str(Path(__file__).parents[1] / "supervisor"))

from supervisor_stage import FAST, StandIns, make_config

SHAPE = LLAMA | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
}


def write_tiny(folder: Path) -> Path:
    """A model without weights, which `--load-format dummy` makes up."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = SHAPE | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(shape))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def given_of(name: str, **more: Any) -> Given:
    """What `up` would have noted of a run of stand-ins."""
    return Given(
        name=name,
        profile="none",
        flags={"serve.port": 0},
        environment={},
        files=tuple(map(str, config_files())),
        own_keys=str(paths.keys_file()),
        composed=compose(
            name,
            str(paths.run_dir(name)),
            ModelConfig(path="/nowhere", id="tiny"),
            None,
            files=file_values(config_files()),
            flags={"serve.port": 0},
        ).config,
        **more,
    )


@contextmanager
def live_run(name: str = "default", **frontend: Any) -> Iterator[Path]:
    """The folder of a run of stand-ins, supervised in a thread. frontend: how it acts."""
    run = paths.run_dir(name)
    ready = threading.Event()
    write_given(given_of(name), run)

    def serve() -> None:
        lock = RunLock.take(run)

        def watch(kind: str, text: str) -> None:
            if kind == "ready":
                ready.set()

        config = make_config(run)
        write_config(config, paths.config_file(run))
        commands = StandIns(print=["2026-11-20T12:00:01.123Z ERROR   engine-0 something odd"])
        commands.frontend_told = frontend
        listener = bind("127.0.0.1", 0)
        asyncio.run(supervise(config, listener, commands=commands, limits=FAST, watcher=watch))
        lock.release()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    try:
        yield run
    finally:
        if held(run):
            Client(paths.control_socket(run)).down(0.0)
        thread.join(60)


class FakeModel(BaseHTTPRequestHandler):
    """Streams the words of the last message, backwards."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []

    def _complete(self, body: dict[str, Any]) -> None:
        chances = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5]}
        choice = {"text": body["prompt"] + "!", "finish_reason": "length"}
        choice |= {"logprobs": chances} if "logprobs" in body else {}
        event = json.dumps({"choices": [choice], "usage": {"completion_tokens": 2}})
        streamed = f"data: {event}\n\ndata: [DONE]\n\n"
        self._answer(200, streamed if body.get("stream") else event)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if "prompt" in body:
            self._complete(body)
            return
        words = body["messages"][-1]["content"].split()[::-1]
        if words == ["loading"]:
            self._answer(503, json.dumps({"error": {"message": "still loading"}}))
            return
        if not body.get("stream"):
            whole = {"message": {"content": " ".join(words)}, "finish_reason": "stop"}
            self._answer(200, json.dumps({"choices": [whole], "usage": {"completion_tokens": 1}}))
            return
        events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"delta": {"content": w + " "}}]} for w in words]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        usage = {"prompt_tokens": 7, "completion_tokens": len(words)}
        events += [{"choices": [], "usage": usage}]
        lines = "".join(f"data: {json.dumps(e)}\n\n" for e in events)
        self._answer(200, ": hello\n\n" + lines + "data: [DONE]\n\n")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def model_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
