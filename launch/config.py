"""One frozen configuration: command line, configuration file and record are all made of it.

Groups by subject, in the order in which a newcomer asks. A field is a flag, a key of a
configuration file and a key of the record, by one name.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lvsa.errors import LVSAError
from lvsa.launch.fields import Range, built, check, converted, flattened, plain
from lvsa.settings import LVSASettings

ExchangeName = Literal["needed", "ring", "all_gather"]
OffloadName = Literal["none", "model", "group"]
ParallelName = Literal["auto", "manual"]
SharingName = Literal["auto", "on", "off"]
DeviceName = Literal["auto", "cpu", "cuda", "npu", "xpu", "mps"]
OutputName = Literal["video", "latents"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

# Other names of fields: those of diffusers, and those of earlier versions.
ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_scale_2": "guidance_2",
    "boundary_ratio": "boundary",
    "schedule": "keyframe_placement",
    "reference_latent_frames": "horizon",
    "condition_frames": "condition_latent_frames",
    "from": "from_record",
}
# Earlier versions' name for what a missing key_frame_interval means.
AUTO_KEYFRAMES = "auto_keyframes"

# H.264 knows no larger pictures.
Pixels = Annotated[int | None, Range(1, 16_384)]


@dataclass(frozen=True)
class VideoConfig:
    """What the video shows, and its size."""

    prompt: str | None = None
    """What the video shows. Must be given; "" leaves it to the model."""
    negative_prompt: str = ""
    """What it should not show; needs a guidance above 1."""
    negative_prompt_file: Path | None = None
    """The same from a text file (UTF-8)."""
    num_frames: Annotated[int | None, Range(1, 100_000)] = None
    """Length in video frames; Wan takes 4k + 1. Default: the model's own."""
    height: Pixels = None
    """Height in pixels. Default: the model's own."""
    width: Pixels = None
    """Width in pixels. Default: the model's own."""
    fps: Annotated[int | None, Range(1, 1_000)] = None
    """Frame rate of the mp4, video frames per second. Default: the model's own."""
    image: Path | None = None
    """First frame, for models that take an image (file)."""
    last_image: Path | None = None
    """Last frame, for models that take one (file)."""
    video: Path | None = None
    """Video to start from, for models that take one (file)."""
    strength: float | None = None
    """How far to leave --video behind, above 0 and up to 1. Default: the pipeline's own."""


@dataclass(frozen=True)
class ListConfig:
    """Many videos, for which the model is loaded once; or one that was made before."""

    prompts: Path | None = None
    """File of requests: text with a prompt on each line; or JSONL or YAML, with prompt and, where
    it differs, negative_prompt, seed, image, last_image, video, output_name, num_frames, height,
    width, fps, steps, guidance, strength, lvsa."""
    seeds: tuple[int, ...] = ()
    """Seeds, in place of --seed: a video for each of them."""
    share: str | None = None
    """Part of the list that this job makes: 0/4 to 3/4 for the first to the last of four jobs."""
    from_record: Path | None = None
    """Record of a video to make again (also --from): with its settings, beside it as NAME-again,
    and it is said whether the bits are the same."""


@dataclass(frozen=True)
class ModelConfig:
    """Which weights make it."""

    model: str = "tiny-wan"
    """A directory in diffusers' format, a hub id (org/name), or tiny-wan, which comes along."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. Default: main."""
    variant: str | None = None
    """Variant of the weight files, like fp16 of model.fp16.safetensors. Default: the plain ones."""
    allow_pickle: bool = False
    """Also read pickled weights, which can run code of whoever made them."""
    dtype: DtypeName = "auto"
    """Number format of the weights. auto: bfloat16 on an accelerator, float32 on the CPU."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """FILE_OR_ID[:SCALE][:high|low], once for each LoRA: a file, a folder or a hub id (org/name, or
    org/name/FILE), merged at this scale (1) into one expert of a model with two, or into all."""


@dataclass(frozen=True)
class SamplingConfig:
    """How it is denoised."""

    steps: Annotated[int | None, Range(1, 10_000)] = None
    """Denoising steps (also --num-inference-steps). Default: the model's own."""
    guidance: float | None = None
    """Scale of classifier-free guidance (also --guidance-scale); 1 switches it off. Default: the
    model's own."""
    guidance_2: float | None = None
    """Guidance of the low-noise transformer of models with two (Wan 2.2 A14B). Default: that of
    --guidance where it is given, else the model's own."""
    boundary: Annotated[float | None, Range(0, 1)] = None
    """Noise level, 0 to 1, below which the low-noise transformer takes over. Default: the model's
    own."""
    flow_shift: Annotated[float | None, Range(0.01, 1_000)] = None
    """Shift of the noise levels of flow matching: above 1, more steps at high noise. Default: as
    published for the model and the size."""
    scheduler: str | None = None
    """Class of a diffusers scheduler, or own: the checkpoint's as its file says. Default: as
    published for the model."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class AttentionConfig:
    """What attends what. Frames are video frames unless a name says latent."""

    lvsa: bool = False
    """Sparse attention (LVSA). Without it every frame attends every frame."""
    settings: Annotated[LVSASettings, tyro.conf.arg(name="")] = LVSASettings()  # noqa: RUF009
    riflex: bool = False
    """Lower the temporal RoPE frequency that makes long videos repeat themselves (RIFLEx)."""
    riflex_ratio: float | None = None
    """Length of the video over the training horizon, for --riflex. Default: the true ratio."""
    riflex_k: Annotated[int | None, Range(1, 1_000)] = None
    """Which temporal frequency --riflex lowers, counted from 1. Default: the one that RIFLEx's
    authors name for the model."""
    backend: str = "auto"
    """Attention kernel: triton, sdpa, flashinfer, npu, math, or auto: one by device and dtype.
    One that is missing is an error, never replaced."""


@dataclass(frozen=True)
class TuningConfig:
    """What makes it fit into memory, and faster."""

    offload: OffloadName = "none"
    """Keep weights in the CPU's memory and bring them to the device to compute: one whole model at
    a time, or a group of layers at a time."""
    shard_weights: bool = False
    """Keep on every rank of a video a part of the weights of transformers and encoders; those of a
    block come together while it runs (FSDP2)."""
    vae_tiling: bool = False
    """Encode and decode in tiles, in much less memory; seams may show."""
    compile: bool = False
    """Compile the transformer's blocks (torch.compile): minutes at first, faster steps then."""
    cache: str | None = None
    """NAME[:NUMBER], a step cache of diffusers: it skips what hardly changes, and makes another
    video. first-block[:THRESHOLD] (0.05), taylorseer[:STEPS] (5), sea[:THRESHOLD] (0.25),
    pyramid[:STEPS] (2)."""


@dataclass(frozen=True)
class OutputConfig:
    """What is written, and where."""

    output_dir: Path = Path("outputs")
    """Folder for the video and its record."""
    output_name: str | None = None
    """Name of both, without suffix. Default: from the prompt and the seed."""
    overwrite: bool = False
    """Make every video, also where one of that name is there already."""
    output: OutputName = "video"
    """What is made: the video, or its latents alone, which --decode makes a video of."""
    show_mask: bool = False
    """Also save a picture of the attention pattern (PNG)."""
    profile: Annotated[int | None, Range(1, 100)] = None
    """Also write a trace of so many denoising steps from every rank (torch.profiler), with the
    phases attention, exchange and rest."""
    dry_run: bool = False
    """Load no weights: print the plan and save the picture."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a video until it is there, so that an interrupted job goes on."""

    checkpoint_seconds: Annotated[float | None, Range(0, 30 * 24 * 3600)] = None
    """Seconds between two checkpoints of the denoising; 0: after every step. Default: as often as
    they cost less than 1 % of the time."""
    fresh: bool = False
    """Begin anew also where a checkpoint of the same job lies, which is removed."""
    keep_latents: bool = False
    """Keep the denoised latents beside the video (.latents.safetensors)."""
    decode: Path | None = None
    """Make a video of latents that were kept, on one process. Settings are those of the file;
    flags override them."""


@dataclass(frozen=True)
class ProcessesConfig:
    """Where it runs, on how many processes."""

    device: DeviceName = "auto"
    """Kind of device. auto: the accelerator that PyTorch sees, else the CPU."""
    parallel: ParallelName = "auto"
    """Who chooses how ranks share a video. auto: what --exchange, --ulysses and --guidance-parallel
    leave at their defaults is chosen by the predicted seconds of a step, where the GPU is known;
    manual: all as they say."""
    exchange: ExchangeName = "needed"
    """How keys and values travel: only needed frames, straight to who attends them (needed) or from
    neighbor to neighbor (ring), or all of them to all."""
    replicas: Annotated[int, Range(1, 1_024)] = 1
    """Videos of a list that are made at the same time, each by an equal part of the ranks."""
    ulysses: Annotated[int, Range(1, 1_024)] = 1
    """Ranks that exchange tokens for attention heads, which this must divide; the other ranks of a
    video exchange frames."""
    guidance_parallel: bool = False
    """Make the two passes of guidance at once, each on half of the ranks."""
    vae_parallel: SharingName = "auto"
    """Decode on all ranks of a video: tiles in turn, or whole frames by bands of rows (Wan,
    SkyReels; needs DistVAE). auto: for one video, where that can be done; in a list only with
    --offload. The flag without a value is on."""
    timeout: Annotated[float, Range(0.001, 30 * 24 * 3600)] = 1800.0
    """How long a rank may be silent, or keep the others waiting in a step, seconds."""
    log_dir: Path | None = None
    """Folder for a log file of every rank. Default: only one of a rank that fails is kept, among
    the system's temporary files."""
    ranks: Annotated[int | None, Range(1, 4_096)] = None
    """Ranks to plan for, with --dry-run. Default: as many as were started."""
    hardware: str | None = None
    """GPU to predict on, on paper, for --dry-run and --parallel auto: a100, h100, h200, b200, l40s,
    rtx4090, rtx5090, or a TOML file that describes one. Default: for --parallel the GPU that is
    here."""
    gpu_memory: Annotated[float | None, Range(0.1, 10_000)] = None
    """Memory of a GPU in GB (10⁹ bytes): --dry-run says whether the job fits, and what would make
    it fit."""


@dataclass(frozen=True)
class GenerateConfig:
    """Make a long video with a diffusion model, on one process or many.

    Raises:
        LVSAError: for a number out of range or not finite, or a text that is not valid Unicode.
    """

    video: VideoConfig = VideoConfig()
    listing: ListConfig = ListConfig()
    model: ModelConfig = ModelConfig()
    sampling: SamplingConfig = SamplingConfig()
    attention: AttentionConfig = AttentionConfig()
    tuning: TuningConfig = TuningConfig()
    output: OutputConfig = OutputConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    processes: ProcessesConfig = ProcessesConfig()

    def __post_init__(self) -> None:
        for field in flattened(self):
            check(field)

    @property
    def wants_latents(self) -> bool:
        """Whether latents are to lie beside the video, or in its place."""
        return self.output.output == "latents" or self.checkpoint.keep_latents

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names of the flags, without groups."""
        return {field.name: plain(field.value) for field in flattened(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerateConfig":
        """What `as_dict` gave, or a part of it; a missing value, or None, is the default.

        Args:
            values: by the names of the flags, with dashes or underscores.

        Raises:
            LVSAError: for an unknown name (with the nearest one), one that is given twice, a value
                of another type, or what the constructor refuses.
        """
        known = cls().as_dict()
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = field_name(str(key))
            if name in given:
                raise LVSAError(f"{name} is given twice, the second time as {key!r}")
            if name not in known and name != AUTO_KEYFRAMES:
                near = difflib.get_close_matches(name, [*known, *ALIASES], 1)
                raise LVSAError(
                    f"there is no setting {key!r}"
                    + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
                )
            given[name] = value
        automatic = given.pop(AUTO_KEYFRAMES, None)
        if automatic is not None and converted(AUTO_KEYFRAMES, automatic, bool):
            interval = given.get("key_frame_interval")
            if interval is not None:
                raise LVSAError(
                    f"{AUTO_KEYFRAMES} is true and key_frame_interval is {interval}; give one"
                )
        return built(cls, given)


def field_name(name: str) -> str:
    """The field that a key or a flag without its leading dashes stands for."""
    name = name.replace("-", "_")
    return ALIASES.get(name, name)
