"""gpt-oss' form: messages in channels. Thoughts are in `analysis`, the answer is in `final`, and a
message to `functions.name` is a tool call."""

from __future__ import annotations

from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Put, Reading, Tape, marks

MESSAGE, CHANNEL, START = "<|message|>", "<|channel|>", "<|start|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (MESSAGE, CHANNEL, START, "<|constrain|>", *ENDS)


def harmony(tape: Tape, sink: Sink, thoughts: Put, reads_calls: bool) -> Reading[None]:
    """After the prompt's `<|start|>assistant`. thoughts: where they go."""
    opening, closing = marks(MESSAGE), marks(START, CHANNEL, *ENDS)
    mark = ""
    while True:
        tape.hold(mark)
        if not (yield from tape.until(_nowhere, opening)):
            sink.text(_without_marks(tape.release()))
            if tape.ended:
                return
            mark = ""
            continue
        channel, recipient = _read_header(tape.release())
        put: Put = sink.text
        if recipient and reads_calls:
            sink.begin_call(recipient)
            put = sink.arguments
        elif channel == "analysis":
            sink.thinking = True
            put = thoughts
        mark = yield from tape.until(put, closing)
        if sink.thinking:
            sink.end_thought()
        if not mark:
            return


def _nowhere(text: str) -> None:
    """A header is read from what the tape holds."""


def _read_header(header: str) -> tuple[str, str]:
    """Channel and recipient; either may be empty, and they come in any order."""
    channel = recipient = ""
    for part in header.replace("<|", " <|").replace("|>", "|> ").split():
        if part.startswith("to="):
            recipient = part[3:].removeprefix("functions.")
        elif CHANNEL in (part, channel):
            channel = part
    return ("" if channel == CHANNEL else channel), recipient


def _without_marks(text: str) -> str:
    for mark in MARKS:
        text = text.replace(mark, "")
    return text
