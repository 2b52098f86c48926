"""What is compiled is kept, and found again where it can be read; errors tell their names."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.kernels import cuda_source
from appliance.runtime.engine.plain import memory_short


class Verdict(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A compiler that is not there; the texts it was given."""
    asked: list[bytes] = []

    def compile(nvrtc: object, name: str, text: bytes, options: list[str]) -> bytes:
        asked.append(text)
        return b"code"

    nvrtc = SimpleNamespace(nvrtcVersion=lambda: (Verdict.CUDA_SUCCESS, 12, 9))
    monkeypatch.setattr(cuda_source, "_bindings", lambda: SimpleNamespace(nvrtc=nvrtc))
    monkeypatch.setattr(cuda_source, "_compiled", compile)
    return asked


def image(folder: Path, source: Path = Path(cuda_source.__file__)) -> bytes:
    return cuda_source.image(source, ["-DX=1"], "sm_90", folder)


def test_what_was_compiled_is_not_compiled_again(tmp_path: Path, compiled: list[bytes]) -> None:
    assert image(tmp_path / "new") == image(tmp_path / "new") == b"code"
    assert len(compiled) == 1


def test_what_cannot_be_read_is_compiled_again(
    tmp_path: Path, compiled: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another user, in a folder that is shared."""
    image(tmp_path)
    read = Path.read_bytes

    def refused(self: Path) -> bytes:
        if self.suffix == ".cubin":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert image(tmp_path) == b"code"
    assert len(compiled) == 2


def test_a_verdict_tells_its_name() -> None:
    """Numbers of an IntEnum look like numbers where they are only formatted."""
    assert cuda_source._checked((Verdict.CUDA_SUCCESS, 5)) == 5
    assert cuda_source._checked((Verdict.CUDA_SUCCESS, 5, 6)) == (5, 6)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
        cuda_source._checked((Verdict.CUDA_ERROR_OUT_OF_MEMORY, None))
    assert memory_short(caught.value)
