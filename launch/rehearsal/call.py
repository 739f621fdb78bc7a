"""The pipeline's own call on fake tensors, as one rank of many, with its memory by phases.

Nothing is computed and nothing is loaded: tensors have shapes and dtypes, ranks that are not there
say what this one says. The pipeline, the transformer with LVSA on it, the exchange and the VAE run
as they do otherwise, so that what is counted follows the code and no formula.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lvsa.adapters.install.enable import install
from lvsa.adapters.install.session import LVSASession
from lvsa.attention import LVSAttention
from lvsa.launch.checkpoint.decoding import without_decoding
from lvsa.launch.inputs import call_arguments
from lvsa.launch.job import Job
from lvsa.launch.media.frames import decode
from lvsa.launch.media.tiles import decodes_in_tiles
from lvsa.launch.processes.reporting import at_level
from lvsa.launch.rehearsal.ledger import Ledger
from lvsa.launch.rehearsal.networks import Network, filled
from lvsa.launch.rehearsal.ranks import fake_ranks
from lvsa.launch.rehearsal.repeats import repeat_frames
from lvsa.launch.rehearsal.stand_ins import ImageProcessor, Tokenizer, schedule_like
from lvsa.launch.rehearsal.values import Inputs, Masks
from lvsa.mesh import VideoMesh
from lvsa.wrapping import wrap_method

STEPS = 2
"""Denoising steps that run: one by each transformer, and the second with what the first leaves."""
# What a video processor does to images before they come to the device.
ON_THE_HOST = ("preprocess", "preprocess_video")


Latents = tuple[torch.Size, torch.dtype]


@dataclass(frozen=True)
class Rehearsed:
    """Most bytes of activations and buffers at once, without weights, and what is decoded.

    Args:
        encoding: of the first rank: texts and images, and the first latents.
        denoising: of a rank in the middle of those that share the sequence.
        latents: shape and dtype of what the VAE is given; None of a pipeline that shows none.
    """

    encoding: int
    denoising: int
    latents: Latents | None


def rehearse(job: Job, found: Mapping[str, Network]) -> Rehearsed:
    """A generation up to its latents, as one rank."""
    encoding = None
    with _fake_video(job) as ranks:
        pipe = _pipeline(job, filled(found))
        arguments = {
            **call_arguments(job.request, job.adapter, pipe, first_rank=True),
            "num_inference_steps": STEPS,
            "generator": None,
            "output_type": "pt",
        }
        if "strength" in arguments:
            arguments["strength"] = 1.0
        with _lvsa(job, pipe, ranks), Ledger() as ledger, without_decoding(pipe) as latents:

            def encoded(*_: Any) -> None:
                nonlocal encoding
                if encoding is None:
                    encoding = ledger.restart()

            for transformer in job.adapter.transformers(pipe).values():
                transformer.register_forward_pre_hook(encoded)
            for name in ON_THE_HOST:
                own = getattr(pipe.video_processor, name)
                wrap_method(pipe.video_processor, name, _on_the_host(own, ledger))
            repeat_frames(pipe.vae, ledger)
            pipe(**arguments)
            x = latents.value
    assert encoding is not None, "a pipeline runs its transformer"
    return Rehearsed(encoding, ledger.peak, None if x is None else (x.shape, x.dtype))


def rehearse_decoding(job: Job, found: Mapping[str, Network], latents: Latents) -> int:
    """Most bytes at once while the launcher decodes latents, on the device."""
    shape, dtype = latents
    with _fake_video(job):
        pipe = _pipeline(job, filled(found))
        processor = pipe.video_processor
        wrap_method(processor, "postprocess_video", partial(_as_tensor, processor.postprocess))
        with Ledger() as ledger:
            repeat_frames(pipe.vae, ledger)
            decode(pipe, torch.empty(shape, dtype=dtype), lambda frame: None)
    return ledger.peak


@contextmanager
def _fake_video(job: Job) -> Iterator[VideoMesh]:
    """Fake tensors, and the groups of a rank in the middle."""
    world = job.mesh.world
    with ExitStack() as stack:
        ranks = VideoMesh()
        if world > 1:
            stack.enter_context(fake_ranks(max(1, (world - 1) // 2), world))
            ranks = VideoMesh.of(job.mesh.device_mesh("cpu"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Masks())
        stack.enter_context(Inputs())
        yield ranks


@contextmanager
def _lvsa(job: Job, pipe: Any, ranks: VideoMesh) -> Iterator[None]:
    """LVSA on a pipeline, without the agreement of ranks that are not there."""
    attention = LVSAttention(
        job.pattern,
        job.grid,
        group=ranks.frames,
        heads=ranks.heads,
        exchange=job.config.processes.exchange,
        # Fused kernels of all devices leave what the CPU's leaves: outputs and log-sum-exps.
        backend="math" if job.config.attention.backend == "math" else "sdpa",
    )
    # What is installed for a rehearsal is nobody's news.
    with (
        at_level("lvsa.adapters", logging.WARNING),
        LVSASession(job.adapter, attention, job.adapter.transformers(pipe)) as session,
    ):
        install(pipe, session, ranks)
        yield


def _pipeline(job: Job, parts: Mapping[str, nn.Module]) -> Any:
    """The job's pipeline with these networks, and stand-ins for what needs values."""
    skeleton, others = job.skeleton, {}
    for name, part in skeleton.components.items():
        _, class_name = job.source.index.get(name) or (None, None)
        absent = part is None and name not in parts and class_name is not None
        others[name] = _stand_in(str(class_name), parts) if absent else part
    settings = {
        name: value
        for name, value in skeleton.config.items()
        if name not in others and not name.startswith("_")
    }
    pipe = type(skeleton)(**{**settings, **others, **parts})
    pipe.scheduler = schedule_like(skeleton.scheduler)
    pipe.set_progress_bar_config(disable=True)
    if decodes_in_tiles(job):
        pipe.vae.enable_tiling()
    return pipe


def _stand_in(class_name: str, parts: Mapping[str, Any]) -> Any:
    if "Tokenizer" in class_name:
        return Tokenizer()
    return ImageProcessor(parts["image_encoder"].config.image_size)


def _as_tensor(postprocess: Callable[..., Tensor], video: Tensor, output_type: str) -> Tensor:
    """A video ``[1, C, F, H, W]`` as it leaves the device: arrays would need values."""
    return postprocess(video[0].permute(1, 0, 2, 3), "pt")[None]


def _on_the_host(method: Callable[..., Tensor], ledger: Ledger) -> Callable[..., Tensor]:
    """A method of which only the result comes to the device."""

    def uncounted(*args: Any, **kwargs: Any) -> Tensor:
        before, ledger.counting = ledger.counting, False
        try:
            result = method(*args, **kwargs)
        finally:
            ledger.counting = before
        if ledger.counting:
            ledger.note((), result)
        return result

    return uncounted
