"""The command line: flags over a configuration file over defaults, and what prints and exits.

Nothing here, or imported from here, needs torch: help and mistakes are answered in an instant.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from lvsa.errors import LVSAError
from lvsa.launch.checkpoint.header import settings_of_latents
from lvsa.launch.config import AUTO_KEYFRAMES, GenerateConfig, field_name
from lvsa.launch.config_file import read_settings
from lvsa.settings import flag

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class CommandLine:
    """Make a long video with a diffusion model, on one process or many.

    torchrun --nproc_per_node=8 launch/generate.py --model DIR --prompt TEXT --num-frames 321 --lvsa
    """

    config: Path | None = None
    """Settings from a YAML file, or from the JSON record of a video; flags override them."""
    print_config: Switch = False
    """Print all settings as such a file, and exit."""
    help_models: Switch = False
    """List the known models with their sizes and defaults, and exit."""
    job: Annotated[GenerateConfig, tyro.conf.arg(name="")] = GenerateConfig()  # noqa: RUF009


def parse(argv: Sequence[str] | None = None, quiet: bool = False) -> GenerateConfig:
    """The configuration of a command line.

    Args:
        argv: arguments without the program's name; `sys.argv` by default.
        quiet: print nothing (ranks other than the first), only exit.

    Raises:
        LVSAError: for flags, values or a file that cannot be understood.
        SystemExit: with 0, when help or the configuration was printed.
    """
    given = [_by_our_name(a) for a in (sys.argv[1:] if argv is None else argv)]
    given = list(_with_values(given))
    defaults = _defaults(given)
    complaint, unseen = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(complaint), redirect_stdout(unseen if quiet else sys.stdout):
            line = tyro.cli(
                CommandLine,
                prog="generate.py",
                args=given,
                default=CommandLine(job=defaults),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if exit_.code:
            raise LVSAError(f"\n{complaint.getvalue().strip()}") from None
        raise
    if line.help_models:
        from lvsa.launch.loading.models import models_table

        _print("" if quiet else models_table())
        raise SystemExit(0)
    if line.print_config:
        text = yaml.safe_dump(line.job.as_dict(), sort_keys=False, allow_unicode=True)
        _print("" if quiet else text)
        raise SystemExit(0)
    return line.job


def _defaults(arguments: Sequence[str]) -> GenerateConfig:
    """What flags override: the settings of a file, read before the flags are, or none."""
    file = _settings_file(arguments)
    if file is None:
        return GenerateConfig()
    option, path = file
    latents = option == "--decode"
    settings = settings_of_latents(path) if latents else read_settings(path, option)
    try:
        defaults = GenerateConfig.from_dict(settings)
    except LVSAError as error:
        raise LVSAError(f"{option} {path}: {error}") from None
    if any(argument.partition("=")[0] == flag("lora") for argument in arguments):
        # Repeated flags add up among themselves; those of a file are overridden like others.
        return replace(defaults, model=replace(defaults.model, lora=()))
    return defaults


def _by_our_name(argument: str) -> str:
    """An argument with the name of our flag in place of another name for it."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"{flag(field_name(name))}{equals}{value}"


def _with_values(arguments: Sequence[str]) -> Iterator[str]:
    """Arguments with the values that flags without one stand for."""
    interval, automatic = flag("key_frame_interval"), flag(AUTO_KEYFRAMES)
    if automatic in arguments and any(a.partition("=")[0] == interval for a in arguments):
        raise LVSAError(f"{automatic} and {interval} exclude one another")
    sharing, alone = flag("vae_parallel"), flag("no_vae_parallel")
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        if argument == automatic:
            # Earlier versions' flag for no interval, which overrides that of a file.
            yield from (interval, "None")
        elif argument == alone:
            yield from (sharing, "off")
        else:
            yield argument
            if argument == sharing and following.startswith("--"):
                yield "on"


def _settings_file(arguments: Sequence[str]) -> tuple[str, Path] | None:
    """The option and FILE of ``--config FILE``, ``--from=FILE`` or ``--decode FILE``."""
    names = {"--config": "--config", flag("from_record"): "--from", "--decode": "--decode"}
    files = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            files.append((names[name], value if equals else "".join(arguments[i + 1 : i + 2])))
    if len(files) > 1:
        given = " and ".join(f"{option} {name}" for option, name in files)
        raise LVSAError(f"{given} are given; one file at a time")
    for option, name in files:
        if not name:
            raise LVSAError(f"{option} needs the name of a file")
        return option, Path(name)
    return None


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
