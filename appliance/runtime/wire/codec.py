"""The border types <-> bytes: msgpack by msgspec, tagged, arrays without a copy when read."""

from __future__ import annotations

from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np

from appliance.errors import ApplianceError
from appliance.runtime.wire.delta import ToFrontend
from appliance.runtime.wire.request import ToEngine
from appliance.runtime.wire.step import Step

VERSION = 3
"""Of the messages between frontends and engines; both sides refuse another."""

MAX_MESSAGE = 64 << 20
"""Bytes. A longer frame is a broken peer."""

T = TypeVar("T")

_DTYPES = {1: np.dtype("<i4"), 2: np.dtype("bool"), 3: np.dtype("<f4"), 4: np.dtype("<u4")}
_CODES = {v.str: k for k, v in _DTYPES.items()}


class CodecError(ApplianceError):
    """Bytes that are no message of this version."""

    default_code = "APL-IPC-001"


def _encode_array(value: object) -> object:
    if isinstance(value, np.ndarray):
        code = _CODES[value.dtype.str]
        return msgspec.msgpack.Ext(code, np.ascontiguousarray(value).data.cast("B"))
    raise NotImplementedError(f"{type(value).__name__} does not cross processes")


def _decode_ext(code: int, data: memoryview) -> object:
    kind = _DTYPES.get(code)
    if kind is None or len(data) % kind.itemsize:
        raise CodecError(f"an array of kind {code} in {len(data)} bytes")
    return np.frombuffer(data, dtype=kind)


def _accept_array(kind: type, value: object) -> object:
    if get_origin(kind) is np.ndarray and isinstance(value, np.ndarray):
        return value
    raise NotImplementedError(f"cannot read {kind}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_frontend: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)
_step: msgspec.msgpack.Decoder[Step] = msgspec.msgpack.Decoder(
    Step, dec_hook=_accept_array, ext_hook=_decode_ext
)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview) -> T:
    try:
        return decoder.decode(data)
    except (
        msgspec.DecodeError,
        RecursionError,
        UnicodeDecodeError,
        NotImplementedError,  # something else where an array should be
    ) as e:
        raise CodecError(f"unreadable message of {len(data)} bytes: {e}") from e


def decode_to_engine(data: bytes | memoryview) -> ToEngine:
    return _decode(_to_engine, data)


def decode_to_frontend(data: bytes | memoryview) -> ToFrontend:
    return _decode(_to_frontend, data)


def decode_step(data: bytes | memoryview) -> Step:
    """The arrays of the Step are views of `data`."""
    return _decode(_step, data)
