"""What `pooled` of a delta holds: float32 values, and what is told of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def values(pooled: bytes) -> Floats:
    return np.frombuffer(pooled, dtype="<f4")


def embedding(pooled: bytes, normalizes: bool, dimensions: int | None = None) -> Floats:
    """The first `dimensions` values, of length one when the model's own are."""
    part = values(pooled)[:dimensions]
    return part / max(float(np.linalg.norm(part)), 1e-12) if normalizes else part


def shares(pooled: bytes, softmax: bool) -> Floats:
    """Log probabilities as probabilities; softmax: among themselves."""
    return probabilities(pooled, "softmax") if softmax else np.exp(values(pooled))


def probabilities(scores: bytes, activation: str) -> Floats:
    """Scores of classes -> what their head means by them. activation: as in Gives."""
    told = values(scores).astype(np.float64)
    if activation == "softmax":
        told = np.exp(told - told.max())
        told /= told.sum()
    elif activation == "sigmoid":
        told = 1.0 / (1.0 + np.exp(-told))
    return told.astype(np.float32)


def cosine(one: bytes, other: bytes) -> float:
    return float(embedding(one, normalizes=True) @ embedding(other, normalizes=True))
