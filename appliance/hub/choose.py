"""Which of a listing's files are worth fetching, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from appliance.errors import NotFoundError
from appliance.hub.source import Listing, RemoteFile

_DUPLICATES = (
    ("original/*", "the authors' own format"),
    ("metal/*", "for another runtime"),
    ("onnx/*", "for another runtime"),
    ("openvino/*", "for another runtime"),
    ("coreml/*", "for another runtime"),
    ("consolidated*.safetensors", "the same weights in one other layout"),
    ("consolidated*.pth", "the same weights, pickled"),
    ("*.pth", "the same weights, pickled"),
    ("*.pt", "the same weights, pickled"),
    ("*.ckpt", "the same weights, pickled"),
    ("pytorch_model*.bin", "the same weights, pickled"),
    ("pytorch_model.bin.index.json", "the same weights, pickled"),
    ("*.gguf", "for another runtime"),
    ("*.onnx", "for another runtime"),
    ("*.onnx_data", "for another runtime"),
    ("*.h5", "for another framework"),
    ("*.msgpack", "for another framework"),
    ("*.ot", "for another framework"),
    ("*.tflite", "for another framework"),
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Skipped:
    file: RemoteFile
    why: str


@dataclass(frozen=True)
class Choice:
    take: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...]


def choose(
    listing: Listing,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    all_files: bool = False,
) -> Choice:
    """Splits a listing. Globs match the whole path; `--include` wins over the duplicates' list.

    NotFoundError when nothing would be left, or when there are no safetensors to serve.
    """
    if not include and not all_files:
        _need_weights(listing)
    whole = _whole_weights(listing.files)
    take: list[RemoteFile] = []
    skipped: list[Skipped] = []
    for file in listing.files:
        why = _why_not(file.path, include, exclude, all_files, whole)
        if why:
            skipped.append(Skipped(file, why))
        else:
            take.append(file)
    if not take:
        raise NotFoundError(
            f"no file of {listing.name} matches.",
            f"It has: {', '.join(f.path for f in listing.files[:12])}.",
            code="APL-NOT-005",
        )
    return Choice(tuple(take), tuple(skipped))


def _why_not(
    path: str, include: Sequence[str], exclude: Sequence[str], all_files: bool, whole: bool
) -> str:
    for glob in exclude:
        if fnmatchcase(path, glob):
            return f"--exclude {glob}"
    if include:
        wanted = any(fnmatchcase(path, glob) for glob in include)
        return "" if wanted else "not in --include"
    if all_files:
        return ""
    for glob, why in _DUPLICATES:
        # Mistral's consolidated file is a second copy only beside the usual files.
        if fnmatchcase(path, glob) and (whole or not path.endswith(".safetensors")):
            return why
    return ""


def _whole_weights(files: Iterable[RemoteFile]) -> bool:
    return any(is_weight(f.path) and not fnmatchcase(f.path, "consolidated*") for f in files)


def is_weight(path: str) -> bool:
    """Whether a path is weights that the runtime reads: safetensors beside config.json."""
    return path.endswith(".safetensors") and "/" not in path


def _need_weights(listing: Listing) -> None:
    if any(is_weight(f.path) for f in listing.files):
        return
    pickled = [f.path for f in listing.files if f.path.endswith(_PICKLED)]
    others = [f.path for f in listing.files if f.path.endswith((".gguf", ".onnx", ".h5"))]
    if pickled:
        raise NotFoundError(
            f"{listing.name} has only pickled weights ({pickled[0]}), which can run code when "
            "they are read.",
            "Look for a safetensors version, or convert them where you trust them: "
            "https://huggingface.co/spaces/safetensors/convert",
            code="APL-NOT-006",
        )
    what = f" (it has {others[0]})" if others else ""
    raise NotFoundError(
        f"{listing.name} has no safetensors weights{what}, so there is nothing to serve.",
        "Choose a repository with model*.safetensors, or fetch what you need with --include.",
        code="APL-NOT-006",
    )
