"""The scanner of responses, fed with bytes cut at every place."""

import json

import pytest

from appliance.bench.stream import BadResponse, Endpoint, ResponseReader
from appliance.errors import UsageError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event({"choices": [{"text": piece}]})


def chunked(*payloads: bytes) -> bytes:
    body = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(p), p) for p in payloads)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nTrailer: x\r\n\r\n"


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
DONE = b"data: [DONE]\n\n"
WHOLE = chunked(text("a"), text(""), text("b") + text('say "error"'), USAGE, DONE)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_events_are_found_however_the_bytes_are_cut(size):
    reader = ResponseReader()
    ends = [reader.feed(WHOLE[at : at + size], float(at)) for at in range(0, len(WHOLE), size)]
    assert ends[-1] and not any(ends[:-1])
    assert reader.error() == ""
    assert len(reader.times) == 3
    assert reader.usage is not None and reader.usage.completion_tokens == 3
    assert list(reader.times) == sorted(reader.times) and reader.last >= reader.times[-1]


def test_times_are_those_of_the_feeds_and_done_is_no_chunk():
    reader = ResponseReader()
    parts = [text("a"), text("b"), USAGE, DONE]
    raw = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    reader.feed(raw, 0.5)
    for i, part in enumerate(parts):
        reader.feed(b"%x\r\n%b\r\n" % (len(part), part), float(i + 1))
    assert reader.feed(b"0\r\n\r\n", 9.0)
    assert list(reader.times) == [1.0, 2.0]
    assert reader.last == 3.0


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b'data: {"choices":[{"text":"x"}]}\n\n', 1),
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', 1),
        (b'data: {"choices":[{"delta":{"reasoning_content": "x"}}]}\n\n', 1),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', 0),
        (b'data: {"choices":[{"delta":{"content":null}}]}\n\n', 0),
        (b": ping\n\n", 0),
        (b'event: x\r\ndata: {"choices":[{"text":"x"}]}\r\n\r\n', 1),
    ],
)
def test_which_events_carry_text(payload, count):
    reader = ResponseReader()
    reader.feed(chunked(payload, DONE), 1.0)
    assert len(reader.times) == count
    assert reader.error() == ""


def test_an_error_in_the_stream_is_an_error():
    reader = ResponseReader()
    reader.feed(chunked(text("a"), event({"error": {"message": "engine died"}}), DONE), 1.0)
    assert "engine died" in reader.error()


def test_the_word_error_in_a_text_is_no_error():
    reader = ResponseReader()
    chunk = event({"id": "x", "choices": [{"index": 0, "text": '"error', "finish_reason": None}]})
    reader.feed(chunked(text('"error"') + chunk, DONE), 1.0)
    assert reader.error() == ""


def test_a_stream_without_done_is_an_error():
    reader = ResponseReader()
    assert reader.feed(chunked(text("a")), 1.0)
    assert "[DONE]" in reader.error()


def test_a_refusal_carries_the_servers_words_and_keeps_the_connection():
    body = b'{"error":{"message":"still loading"}}'
    reader = ResponseReader()
    head = b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert not reader.feed(head + body[:5], 1.0)
    assert reader.feed(body[5:], 2.0)
    assert reader.error() == "HTTP 503: still loading"
    assert reader.keep_alive


def test_a_body_that_ends_with_the_connection():
    reader = ResponseReader()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    assert not reader.feed(head + text("a") + DONE, 1.0)
    assert reader.closed() and not reader.keep_alive and reader.error() == ""


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH\r\n\r\n", b"x" * 70_000])
def test_what_is_no_http_is_refused(raw):
    with pytest.raises(BadResponse):
        ResponseReader().feed(raw, 1.0)


def test_a_bad_chunk_size_is_refused():
    with pytest.raises(BadResponse):
        ResponseReader().feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 1.0)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:99999"])
def test_urls_that_are_none(url):
    with pytest.raises(UsageError):
        Endpoint(url)


def test_urls_with_and_without_v1():
    assert Endpoint("http://h:8000/v1").port == 8000
    assert Endpoint("h").port == 80
    assert Endpoint("https://h/api/v1").port == 443


def native(count: int, finish: object = None) -> bytes:
    meta = {"prompt_tokens": 5, "completion_tokens": count, "finish_reason": finish}
    return event({"text": "x" * count, "output_ids": [1] * count, "meta_info": meta})


def test_native_events_count_tokens_and_share_the_gap():
    reader = ResponseReader()
    reader.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", 0.0)
    for now, part in ((1.0, native(2)), (2.0, native(3)), (6.0, native(7, {"type": "length"}))):
        reader.feed(b"%x\r\n%b\r\n" % (len(part), part), now)
    reader.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE), 7.0)
    assert list(reader.times) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert reader.usage is not None and reader.usage.completion_tokens == 7
    assert reader.error() == "" and reader.last == 6.0


def test_a_native_answer_that_was_aborted_is_a_failure():
    reader = ResponseReader()
    ended = native(2, {"type": "abort", "message": "by the client"})
    body = ended + DONE
    reader.feed(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body, 1.0)
    assert "by the client" in reader.error()
