"""One frozen configuration: command line, YAML file and JSON record are all made of it."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from lvsa.errors import LVSAError
from lvsa.settings import LVSASettings, flag

ExchangeName = Literal["needed", "ring", "all_gather"]
DTYPES = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class GenerateConfig:
    """Make a long video with a diffusion model on one process or many.

    torchrun --nproc_per_node=8 launch/generate.py --model DIR --prompt TEXT --num-frames 321 --lvsa
    """

    model: str = "tiny-wan"
    """A directory in diffusers' format, a hub id (org/name), or tiny-wan, which comes along."""
    prompt: str = ""
    """What the video shows."""
    negative_prompt: str = ""
    """What it should not show; needs a guidance above 1."""
    image: Path | None = None
    """First frame, for models that take an image (file)."""
    last_image: Path | None = None
    """Last frame, for models that take one (file)."""
    video: Path | None = None
    """Video to start from, for models that take one (file)."""
    strength: float | None = None
    """How far to leave --video behind, 0 to 1. Default: the pipeline's own."""
    num_frames: int | None = None
    """Length in video frames; Wan takes 4k + 1. Default: the model's own."""
    height: int | None = None
    """Height in pixels. Default: the model's own."""
    width: int | None = None
    """Width in pixels. Default: the model's own."""
    steps: int | None = None
    """Denoising steps. Default: the model's own."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 switches it off. Default: the model's own."""
    seed: int = 0
    """Seed of the noise."""
    fps: int | None = None
    """Frame rate of the mp4, video frames per second. Default: the model's own."""

    lvsa: bool = False
    """Sparse attention (LVSA). Without it every frame attends every frame."""
    attention: Annotated[LVSASettings, tyro.conf.arg(name="")] = LVSASettings()  # noqa: RUF009
    riflex: bool = False
    """Lower the temporal RoPE frequency that makes long videos repeat themselves (RIFLEx)."""
    riflex_ratio: float | None = None
    """Length of the video over the training horizon, for --riflex. Default: the true ratio."""
    exchange: ExchangeName = "needed"
    """How keys and values travel: only the needed frames, in a ring, or all of them to all."""
    backend: str = "sdpa"
    """Attention kernel: sdpa. A kernel that is missing is an error, never replaced."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to run; LOCAL_RANK picks the GPU. auto: CUDA where there is a GPU."""
    dtype: DTYPES = "auto"
    """Of the weights. auto: bfloat16 on CUDA, float32 on CPU."""
    timeout: float = 1800.0
    """How long a rank waits for the others in a collective, seconds."""

    output_dir: Path = Path("outputs")
    """Folder for the video and its record."""
    output_name: str | None = None
    """Name of both, without suffix. Default: from the prompt and the seed."""
    show_mask: bool = False
    """Also save a picture of the attention pattern (PNG)."""
    dry_run: bool = False
    """Load no weights: print the plan and save the picture."""
    ranks: int | None = None
    """Ranks to plan for, with --dry-run. Default: as many as were started."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values by flag name, settings of the pattern beside the others."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values.update(dataclasses.asdict(values.pop("attention")))
        return {name: _plain(value) for name, value in values.items()}

    def without_effect(self) -> list[str]:
        """Settings that were given and change nothing, each with the reason."""
        found = [] if self.lvsa else [f"{flag(n)}: needs --lvsa" for n in self.attention.changed()]
        found += self.attention.without_effect() if self.lvsa else []
        if self.riflex_ratio is not None and not self.riflex:
            found.append("--riflex-ratio: needs --riflex")
        if self.strength is not None and self.video is None:
            found.append("--strength: needs --video")
        if self.ranks is not None and not self.dry_run:
            found.append("--ranks: needs --dry-run; torchrun says how many ranks run")
        if self.dry_run and self.show_mask:
            found.append("--show-mask: --dry-run saves the picture anyway")
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def parse(argv: Sequence[str] | None = None, quiet: bool = False) -> GenerateConfig:
    """The configuration of a command line.

    ``--config FILE`` is read first, as if its entries were flags before all others, so that files
    are checked like flags and flags override them. ``--print-config`` and ``--help-models`` print
    and exit.

    Args:
        argv: arguments without the program's name; `sys.argv` by default.
        quiet: report nothing on the terminal (ranks other than 0), only exit.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if "--help-models" in given:
        from lvsa.launch.models import models_table

        _show("" if quiet else models_table())
        raise SystemExit(0)
    print_config = "--print-config" in given
    given = [argument for argument in given if argument != "--print-config"]
    given, file = _take_config_file(given)
    config = tyro.cli(
        GenerateConfig,
        prog="generate.py",
        args=[*flags_of_file(file), *given] if file else given,
        console_outputs=not quiet,
        description=f"{GenerateConfig.__doc__}\n\n--config FILE.yaml reads flags from a file; "
        "flags override it. --print-config writes one. --help-models lists models.",
    )
    if print_config:
        _show("" if quiet else yaml.safe_dump(config.as_dict(), sort_keys=False))
        raise SystemExit(0)
    return config


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _take_config_file(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Arguments without ``--config FILE`` (or ``--config=FILE``), and the file."""
    rest, file = [], None
    queue = iter(arguments)
    for argument in queue:
        if argument == "--config":
            file = next(queue, None)
            if file is None:
                raise LVSAError("--config needs the name of a YAML file")
        elif argument.startswith("--config="):
            file = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return rest, None if file is None else Path(file)


def flags_of_file(file: Path) -> list[str]:
    """A YAML mapping of flag names to values, as command-line arguments.

    Raises:
        LVSAError: for a file that cannot be read or is no mapping.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise LVSAError(f"--config {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise LVSAError(f"--config {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise LVSAError(
            f"--config {file} must be a mapping of flags to values, like num_frames: 81"
        )
    arguments: list[str] = []
    for name, value in content.items():
        option = flag(str(name))
        if isinstance(value, bool):
            arguments.append(option if value else flag(f"no_{name}"))
        elif isinstance(value, list):
            arguments += [option, *map(str, value)]
        else:
            # One argument: a prompt that begins with a dash is still a value.
            arguments.append(f"{option}={value}")
    return arguments
