"""Rotary tables: cosines and sines of every position, for each kind of context scaling.

Sources: RoPE (Su et al. 2021); linear (Chen et al. 2023); dynamic NTK and YaRN (Peng et al. 2023);
llama3 (Meta, Llama 3.1 release).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from appliance.runtime.spec import RopeSpec


def _frequencies(theta: float, size: int) -> Tensor:
    """float32 [size / 2]: radians a position."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))


def _llama3(spec: RopeSpec, size: int) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    plain = _frequencies(spec.theta, size)
    wavelength = 2 * math.pi / plain
    longest = spec.original_context / spec.low_freq_factor
    shortest = spec.original_context / spec.high_freq_factor
    blend = (spec.original_context / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    between = (1 - blend) * plain / spec.factor + blend * plain
    out = torch.where(wavelength > longest, plain / spec.factor, plain)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), between, out)


def _yarn(spec: RopeSpec, size: int) -> tuple[Tensor, float]:
    """Frequencies, and the factor on cosines and sines."""

    def dimension(rotations: float) -> float:
        turns = spec.original_context / (rotations * 2 * math.pi)
        return size * math.log(turns) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = spec.theta ** (torch.arange(0, size, 2).float() / size)
    frequencies = 1.0 / (spec.factor * powers) * ramp + 1.0 / powers * (1 - ramp)
    return frequencies, _yarn_scale(spec)


def _yarn_scale(spec: RopeSpec) -> float:
    if spec.attention_factor:
        return spec.attention_factor

    def scale(weight: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * weight * math.log(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return scale(spec.mscale) / scale(spec.mscale_all_dim)
    return scale(1.0)


def _dynamic_angles(spec: RopeSpec, size: int, context: int) -> Tensor:
    """Past the trained context each position turns as in a sequence that ends with it.

    That is what decoding token by token computes, and it depends on the position alone, so that
    cached keys stay valid.
    """
    positions = torch.arange(context, dtype=torch.float32)
    angles = torch.outer(positions, _frequencies(spec.theta, size))
    trained = spec.original_context
    if context > trained:
        lengths = positions[trained:].double() + 1
        stretch = spec.factor * lengths / trained - (spec.factor - 1)
        thetas = spec.theta * stretch ** (size / (size - 2))
        exponents = torch.arange(0, size, 2).double() / size
        turned = positions[trained:, None].double() / thetas[:, None] ** exponents[None, :]
        angles[trained:] = turned.float()
    return angles


def cos_sin_table(spec: RopeSpec, head_dim: int, context: int) -> Tensor:
    """float32 [context, head_dim]: the cosines of each position's angles, then the sines."""
    size = spec.rotary_dim or head_dim
    scale = 1.0
    if spec.kind == "dynamic":
        angles = _dynamic_angles(spec, size, context)
    else:
        if spec.kind == "llama3":
            frequencies = _llama3(spec, size)
        elif spec.kind == "yarn":
            frequencies, scale = _yarn(spec, size)
        elif spec.kind == "linear":
            frequencies = _frequencies(spec.theta, size) / spec.factor
        else:
            frequencies = _frequencies(spec.theta, size)
        angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), -1) * scale
