"""LoRA, offloading, shared weights, compiling, caches, tiling and two experts, alone and in pairs.

On 1 to 3 ranks every pair makes the video of one process. Compiled blocks run on PyTorch's own
kernels here: what is compared is how they go together with hooks, and code generation is PyTorch's
business.
"""

from itertools import combinations

import pytest
import torch
from torch import distributed as dist

import lvsa
from lvsa.adapters import adapter_for
from lvsa.launch.config import TuningConfig
from lvsa.launch.loading.lora import check_loras
from lvsa.launch.tuning import prepare as preparing
from lvsa.launch.tuning.sharding import shard
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline
from tests.support.tiny_lora import saved_lora

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
STEPS = 5
# What each option sets; LoRA and experts are no tuning.
OPTIONS = {
    "lora": {},
    "offload-model": {"offload": "model"},
    "offload-group": {"offload": "group"},
    "shard-weights": {"shard_weights": True},
    "compile": {"compile": True},
    "first-block": {"cache": "first-block:0.7"},
    "taylorseer": {"cache": "taylorseer:2"},
    "sea": {"cache": "sea:0.9"},
    "vae-tiling": {"vae_tiling": True},
    "two-experts": {},
}
ALONE = [(), *((name,) for name in OPTIONS)]
PAIRS = [
    (a, b)
    for a, b in combinations(OPTIONS, 2)
    if not set(OPTIONS[a]) & set(OPTIONS[b])
    and not ("shard-weights" in (a, b) and {"offload-model", "offload-group", "sea"} & {a, b})
]  # fmt: skip
CPU = torch.device("cpu")


def videos(rank, world, lora, cases):
    """Latents, and calls of the attention, of each case."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "COMPILER", "eager")
        for case in cases:
            pipe = wan_pipeline(two_transformers="two-experts" in case)
            transformers = adapter_for(type(pipe)).transformers(pipe)
            loras = check_loras([f"{lora}:0.5"] if "lora" in case else [], pipe, transformers)
            settings = {key: value for name in case for key, value in OPTIONS[name].items()}
            tuning = TuningConfig(**settings)
            preparing.check_tuning(tuning, pipe)
            preparing.prepare(pipe, tuning, loras, transformers, CPU)
            if tuning.shard_weights and world > 1:
                for network in transformers.values():
                    shard(network, dist.group.WORLD, "cpu", whole=True)
            with lvsa.enable(pipe, settings=SETTINGS) as session:
                latents = wan_latents(pipe, steps=STEPS)
            found[case] = latents, session.attention.received.calls
    return found


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return str(saved_lora(wan_pipeline().transformer, folder / "style.safetensors"))


@pytest.fixture(scope="module")
def one_process(lora):
    """Each case in one process. Compiled blocks there are compared in a test of their own."""
    plain = videos(0, 1, lora, [case for case in [*ALONE, *PAIRS] if "compile" not in case])
    return plain | {
        case: plain[tuple(name for name in case if name != "compile")]
        for case in [*ALONE, *PAIRS]
        if "compile" in case
    }


def check(found, one_process):
    for case, (latents, calls) in found.items():
        expected, calls_of_one = one_process[case]
        assert calls == calls_of_one, case
        torch.testing.assert_close(
            latents, expected, rtol=1e-5, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}"
        )


COMPILED = [case for case in PAIRS if "compile" in case]


@pytest.mark.parametrize("world", [2, 3])
def test_every_option_and_pair_makes_the_video_of_one_process(world, lora, one_process):
    cases = [case for case in [*ALONE, *PAIRS] if case not in COMPILED]
    for found in run_ranks(world, videos, lora, cases):
        check(found, one_process)


@pytest.mark.parametrize("case", COMPILED)
def test_every_pair_with_compiled_blocks_does_so(case, lora, one_process):
    """Most of the time goes into tracing, for which a third rank brings nothing new."""
    for found in run_ranks(2, videos, lora, [case]):
        check(found, one_process)


def test_compiled_blocks_in_one_process(lora, one_process):
    check(videos(0, 1, lora, [("compile",), ("compile", "first-block")]), one_process)


def test_each_option_does_what_it_says(one_process):
    """Offloading, compiling and tiling change no latents; a LoRA and caches do."""
    plain, calls = one_process[()]
    for name in ("offload-model", "offload-group", "shard-weights", "vae-tiling"):
        assert torch.equal(one_process[name,][0], plain)
    for name in ("lora", "first-block", "taylorseer", "sea"):
        assert (one_process[name,][0] - plain).abs().max() > 1e-3, name
    for name in ("first-block", "taylorseer", "sea"):
        assert one_process[name,][1] < calls, name
