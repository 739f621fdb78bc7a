"""What is said of a job before it runs: settings without effect, and what is recommended."""

import logging

from lvsa.adapters.install.rope_patch import check_riflex, without_change
from lvsa.launch import sampling
from lvsa.launch.config import ProcessesConfig
from lvsa.launch.job import Job, riflex_options
from lvsa.launch.media.sharing import sharing_without_effect
from lvsa.launch.tuning.prepare import tuning_without_effect
from lvsa.launch.tuning.sharding import shared_weights_without_effect
from lvsa.settings import flag


def without_effect(job: Job) -> list[str]:
    """Settings that were given and change nothing for this job, each with the reason."""
    config, steps, guidance = job.config, job.request.steps, job.request.guidance
    video, attention, processes = config.video, config.attention, config.processes
    settings, dense_anyway = attention.settings, job.pattern.is_dense
    still = settings.rotate_keyframes and not dense_anyway and job.pattern.n_offsets == 1
    notes = [
        *[(not attention.lvsa, f"{flag(name)}: needs --lvsa") for name in settings.changed()],
        *[(attention.lvsa, note) for note in settings.without_effect()],
        (
            attention.lvsa and dense_anyway,
            f"--lvsa: every one of the {job.pattern.frames} latent frames attends all others "
            f"anyway (training horizon: {job.horizon})",
        ),
        (
            attention.lvsa and still and steps > 1,
            "--rotate-keyframes: there is no keyframe that could move",
        ),
        (
            attention.lvsa and still and steps == 1,
            "--rotate-keyframes: one denoising step has one set of keyframes",
        ),
        (
            attention.riflex_ratio is not None and not attention.riflex,
            "--riflex-ratio: needs --riflex",
        ),
        (
            attention.riflex_k is not None and not attention.riflex,
            "--riflex-k: needs --riflex",
        ),
        *_riflex_changes_nothing(job),
        *tuning_without_effect(config.tuning, steps, job.device, job.adapter.tiled_vae),
        *shared_weights_without_effect(config.tuning, job.mesh.video),
        *sharing_without_effect(job),
        (
            config.output.profile is not None and config.output.dry_run,
            "--profile: --dry-run makes no steps",
        ),
        *sampling.without_effect(config.sampling, job.skeleton, guidance, steps),
        (video.strength is not None and video.video is None, "--strength: needs --video"),
        (
            config.model.revision is not None and not job.source.on_hub,
            f"--revision: {job.source.name} is not on the model hub",
        ),
        (
            processes.ranks is not None and not config.output.dry_run,
            "--ranks: needs --dry-run; torchrun says how many ranks run",
        ),
        (
            processes.hardware is not None and not config.output.dry_run and job.mesh.world == 1,
            "--hardware: needs --dry-run, or several ranks",
        ),
        (
            processes.parallel != ProcessesConfig.parallel and job.mesh.world == 1,
            f"--parallel {processes.parallel}: one process shares with nobody",
        ),
        (
            processes.gpu_memory is not None and not config.output.dry_run,
            "--gpu-memory: needs --dry-run",
        ),
        (
            config.output.show_mask and config.output.dry_run,
            "--show-mask: --dry-run saves the picture anyway",
        ),
        (
            processes.exchange != ProcessesConfig.exchange and job.mesh.frames == 1,
            f"--exchange {processes.exchange}: one rank's frames are exchanged with nobody",
        ),
        (
            processes.timeout != ProcessesConfig.timeout and job.mesh.world == 1,
            "--timeout: one process waits for nobody",
        ),
        (
            bool(job.request.negative_prompt.strip()) and guidance <= 1,
            f"--negative-prompt: --guidance is {guidance:g}, which needs none",
        ),
        (not (video.prompt or "").strip(), "--prompt: empty, so the video shows anything"),
    ]
    return [note for applies, note in notes if applies]


def _riflex_changes_nothing(job: Job) -> list[tuple[bool, str]]:
    """Why --riflex changes nothing. A run says so by itself, when it comes to the video."""
    if not job.config.attention.riflex or not job.config.output.dry_run:
        return []
    options, transformers = riflex_options(job.config), job.adapter.transformers(job.skeleton)
    targets = check_riflex(transformers, job.horizon, options)
    reason = without_change(targets, job.grid.frames, job.horizon, options)
    return [(reason is not None, f"--riflex: {reason}")]


def advice(job: Job) -> list[tuple[int, str]]:
    """What the model's authors recommend and the job does not do, each with its level."""
    known, request = job.adapter.known_model(job.skeleton), job.request
    given = known.defaults if known else None
    found = []
    if given and given.negative_prompt and request.guidance > 1 and not request.negative_prompt:
        found.append(
            (
                logging.INFO,
                "no negative prompt is given; the model's authors recommend theirs: "
                f"{given.negative_prompt} (--negative-prompt-file FILE)",
            )
        )
    multiple = given.frames_multiple if given else None
    below = (request.num_frames - 1) // (multiple or 1) * (multiple or 1) + 1
    # A pipeline that begins with a video takes other lengths.
    if multiple and below != request.num_frames and "video" not in request.conditions:
        found.append(
            (
                logging.WARNING,
                f"{request.num_frames} frames: by its authors' word this model makes "
                f"{multiple}k + 1; nearest: {below} or {below + multiple}",
            )
        )
    return found
