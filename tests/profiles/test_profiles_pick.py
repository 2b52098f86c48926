"""The profile for a model: the fewest GPUs that hold it with its whole context."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from profiles_machines import H100X8, HOST, llama, llama_70b

from appliance import paths
from appliance.errors import UsageError
from appliance.hardware import HardwareSnapshot
from appliance.profiles import compose, known, match, pick, store
from appliance.profiles.schema import Profile
from appliance.runtime.config import ModelConfig
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import Plan, resolve


def picked(config: dict[str, object], hardware: HardwareSnapshot, tmp_path: Path) -> pick.Picked:
    spec = spec_of(config)
    model = ModelConfig(path="/m", id="m")

    def plan_with(profile: Profile) -> Plan:
        made = compose.compose("r", "/r", model, profile)
        return resolve(made.config, spec, hardware, made.sources)

    shipped = store.load(paths.shipped_profiles(), tmp_path)
    return pick.pick(match.candidates(shipped.values(), hardware), spec, hardware, plan_with)


@pytest.mark.parametrize(
    ("config", "gpus", "name", "why"),
    [
        (llama(), "h100x8", "h100x1-bf16", "made for"),
        (llama_70b(), "h100x8", "h100x4-bf16", "2 GPU(s) do not hold it"),
        (llama(), "rtx4090x4", "rtx4090x2-bf16", "1 GPU(s) do not hold its whole context"),
        (llama(num_attention_heads=14, num_key_value_heads=2), "h200x8", "h200x1-bf16", "made"),
        # no count holds the whole context: the one that holds most of it
        (llama_70b(), "t4x8", "t4x8-fp16", "made for"),
    ],
)
def test_fewest_gpus_that_hold_it(
    config: dict[str, object], gpus: str, name: str, why: str, tmp_path: Path
) -> None:
    found = picked(config, known.assumed(gpus), tmp_path)
    assert found.profile.name == name
    assert why in found.why


def test_gpus_that_cannot_share_the_heads_out_are_passed_over(tmp_path: Path) -> None:
    """70 billion weights, five heads: no other size than one, which does not hold them."""
    odd = llama_70b() | {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 128}
    found = picked(odd, H100X8, tmp_path)
    assert found.profile.match.count == 1 and not found.fit.fits


def test_problem_of_the_first_is_told_when_none_can_be_planned() -> None:
    def plan_with(profile: Profile) -> Plan:
        raise UsageError(f"no {profile.name}")

    offered = match.candidates(store.load(own=Path("/nonexistent")).values(), H100X8)
    with pytest.raises(UsageError, match="no h100x1-bf16"):
        pick.pick(offered, spec_of(llama()), H100X8, plan_with)


def test_own_profile_comes_first(tmp_path: Path) -> None:
    own = store.load(paths.shipped_profiles(), tmp_path)["h100x8-bf16"]
    mine = msgspec.structs.replace(
        own, own=True, profile=msgspec.structs.replace(own.profile, name="mine")
    )
    everything = [*store.load(paths.shipped_profiles(), tmp_path).values(), mine]
    assert match.choose(everything, H100X8).profile.name == "mine"
    assert match.choose(everything, HOST).profile.name == "cpu-large"


SMOL = llama(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64, vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
QWEN_32B = llama(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=5120,
    intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64, vocab_size=151936,
    max_position_embeddings=40960,
)  # fmt: skip
GPUS = (
    "t4", "t4x2", "l4", "a10x2", "rtx4090", "rtx5090", "a100-40", "a100-40x2", "l40sx2", "a6000",
    "a100-80", "h100", "h100x2", "h100x4", "h200", "b200",
)  # fmt: skip
TOO_SMALL = {
    # GB of weights in 16 bits: machines that cannot hold them with room to work
    0.3: set(),
    16.1: {"t4"},
    65.5: {"t4", "t4x2", "l4", "a10x2", "rtx4090", "rtx5090", "a100-40", "a6000"},
    141.1: set(GPUS) - {"h100x2", "h100x4", "b200"},
}


@pytest.mark.parametrize(
    ("config", "weights"), [(SMOL, 0.3), (llama(), 16.1), (QWEN_32B, 65.5), (llama_70b(), 141.1)]
)
def test_what_is_told_before_the_download(config: dict[str, object], weights: float) -> None:
    """Models by machines: who would have pulled for hours knows in a second."""
    stored = spec_of(config).parameters() * 2
    assert round(stored / 1e9, 1) == weights
    for gpu in GPUS:
        said = pick.verdict(config, stored, known.assumed(gpu))
        begins = "does not fit: " if gpu in TOO_SMALL[weights] else "fits with profile "
        assert said.startswith(begins), (gpu, said)
        room = sum(g.memory_total for g in known.assumed(gpu).gpus)
        assert stored < 0.94 * room or gpu in TOO_SMALL[weights]
