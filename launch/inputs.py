"""What a generation takes, settled before any weights are loaded."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.checkpoints import Defaults
from lvsa.errors import LVSAError
from lvsa.launch.conditions import Conditions
from lvsa.launch.config import GenerateConfig, VideoConfig
from lvsa.launch.config_file import read_text
from lvsa.launch.sampling import Sampling, settle
from lvsa.settings import flag

FILES = ("image", "last_image", "video")
# Arguments of diffusers pipelines that are flags under another name.
FLAGS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_scale_2": "--guidance-2",
}


@dataclass(frozen=True)
class Request:
    """A generation with nothing left open.

    Args:
        num_frames, height, width: frames and pixels.
        steps, guidance, seed, fps: as their flags.
        prompt, negative_prompt: texts.
        conditions: images, video and strength for the pipeline, by its argument names.
        sampling: how it is denoised.
    """

    num_frames: int
    height: int
    width: int
    steps: int
    guidance: float
    fps: int
    seed: int
    prompt: str
    negative_prompt: str
    conditions: dict[str, Any]
    sampling: Sampling


def make_request(
    config: GenerateConfig, pipe: Any, adapter: ModelAdapter, defaults: Defaults | None, world: int
) -> Request:
    """Settles what the user left open by the model's defaults, and reads images and videos.

    Args:
        config: the user's settings.
        pipe: the pipeline, or a skeleton of it.
        adapter: of the model.
        defaults: of the model; None where it is not known.
        world: ranks that share the video; a size that nobody asked for divides among them.

    Raises:
        LVSAError: for something open that no default settles, a file that cannot be read, or an
            image or video that the pipeline does not take, or lacks.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    video, sampling = config.video, config.sampling
    sources = Conditions({n: p for n in FILES if (p := getattr(video, n)) is not None})
    values: dict[str, Any] = {
        "num_frames": video.num_frames,
        "height": video.height,
        "width": video.width,
        "fps": video.fps,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
    }
    any_size = values["height"] is None and values["width"] is None
    # Nobody says how many frames of the video: all of them.
    whole = sources.video is not None and values["num_frames"] is None
    if defaults is not None:
        values = {n: getattr(defaults, n) if v is None else v for n, v in values.items()}
        if any_size:
            frames = None if whole else values["num_frames"]
            own = defaults.height, defaults.width
            values["height"], values["width"] = sources.size(own, adapter, pipe, frames, world)
    if whole:
        del values["num_frames"]
    open_flags = [flag(name) for name, value in values.items() if value is None]
    if open_flags:
        raise LVSAError(
            f"{type(pipe).__name__} of a size that is not known; please give "
            f"{', '.join(open_flags)} (--help-models lists the known ones)"
        )
    size = values["height"], values["width"]
    conditions = sources.fitted(size, values.get("num_frames"), values["fps"])
    if whole:
        values["num_frames"] = len(conditions["video"])
    if video.strength is not None and video.video is not None:
        if not 0 < video.strength <= 1:
            raise LVSAError(f"--strength is {video.strength}; allowed: above 0, up to 1")
        if int(values["steps"] * video.strength) < 1:
            raise LVSAError(
                f"--strength {video.strength:g} of {values['steps']} steps leaves none to run; "
                f"smallest that works: {1 / values['steps']:g}"
            )
        conditions["strength"] = video.strength
    _check_conditions(video, type(pipe).__name__, accepted, conditions)
    return Request(
        **values,
        seed=sampling.seed,
        prompt=video.prompt or "",
        negative_prompt=_negative_prompt(video),
        conditions=conditions,
        sampling=settle(sampling, pipe, adapter, size),
    )


def _negative_prompt(video: VideoConfig) -> str:
    """What the video should not show, of the flag or of a file."""
    path = video.negative_prompt_file
    if path is None:
        return video.negative_prompt
    if video.negative_prompt:
        raise LVSAError("--negative-prompt and --negative-prompt-file exclude one another")
    text = read_text(path, "--negative-prompt-file").strip()
    if not text:
        raise LVSAError(f"--negative-prompt-file {path} is empty")
    return text


def _check_conditions(
    video: VideoConfig, pipeline: str, accepted: Any, conditions: dict[str, Any]
) -> None:
    takes = [name for name in ("image", "last_image", "video", "strength") if name in accepted]
    for name in conditions:
        if name not in accepted:
            raise LVSAError(
                f"{flag(name)}: {pipeline} takes none; it takes "
                f"{', '.join(map(flag, takes)) or 'a prompt only'}"
            )
    image = accepted.get("image")
    if image is not None and image.default is inspect.Parameter.empty and video.image is None:
        raise LVSAError(f"{pipeline} begins with an image; give --image FILE")
    if "video" in accepted and "num_frames" not in accepted and video.video is None:
        raise LVSAError(f"{pipeline} begins with a video; give --video FILE")


def call_arguments(
    request: Request, adapter: ModelAdapter, pipe: Any, first_rank: bool
) -> dict[str, Any]:
    """Arguments of the pipeline's call. Only the first rank decodes.

    Raises:
        LVSAError: where the pipeline lacks an argument that a user's flag needs.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "height": request.height,
        "width": request.width,
        "num_frames": request.num_frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "np" if first_rank else "latent",
        **request.sampling.arguments(),
        **request.conditions,
    }
    arguments = adapter.call_arguments(pipe, arguments)
    # A pipeline that works its size or length out of an image or a video has no such argument.
    derived = {"height", "width"} if "image" in accepted else set()
    derived |= {"num_frames"} if "video" in accepted else set()
    missing = [name for name in arguments if name not in accepted and name not in derived]
    if missing:
        raise LVSAError(
            f"{type(pipe).__name__} has no "
            f"{', '.join(FLAGS.get(name, flag(name)) for name in missing)}"
        )
    return {name: value for name, value in arguments.items() if name in accepted}
