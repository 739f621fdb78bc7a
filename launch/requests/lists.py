"""The requests of a job: one from the flags, or many from a file and from seeds.

A request is a whole configuration of one video, so that its record makes it again by itself. Files
are read strictly: what could be a mistake is an error with its line, never a prompt.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lvsa.errors import LVSAError
from lvsa.launch.config import GenerateConfig, ListConfig, field_name
from lvsa.launch.config_file import read_text, unique, yaml_mappings
from lvsa.launch.requests.repeat import output_of, read_record

FILES = ("image", "last_image", "video")
# What a request of a file may say for itself; all else is the same for the whole list.
KEYS = (
    "prompt", "negative_prompt", "seed", *FILES, "output_name", "num_frames", "height", "width",
    "fps", "steps", "guidance", "strength", "lvsa",
)  # fmt: skip
MOST_YAML_CHARACTERS = 256 * 1024
MOST_PROBLEMS = 20
"""Lines that a message names."""


@dataclass(frozen=True)
class Request:
    """One video that is asked for.

    Args:
        config: its settings, without those of the list.
        where: what asks for it, for messages: a line of a file; empty for the flags.
        repeats: record of the video that it is to be made as again.
    """

    config: GenerateConfig
    where: str = ""
    repeats: Mapping[str, Any] | None = None


class ListError(LVSAError):
    """Requests of a list that cannot be made, each with its line."""

    @classmethod
    def of(cls, problems: Mapping[str, str]) -> "ListError":
        """One error for several, by what asks for them; what many have in common is said once."""
        alike: dict[str, list[str]] = {}
        for where, text in problems.items():
            alike.setdefault(text, []).append(where)
        lines = [
            where[0] + (f" and {len(where) - 1} more" if len(where) > 1 else "") + f": {text}"
            for text, where in alike.items()
        ]
        more = len(lines) - MOST_PROBLEMS
        return cls("\n".join(lines[:MOST_PROBLEMS] + [f"and {more} others"] * (more > 0)))


def requests_of(config: GenerateConfig) -> list[Request]:
    """Every video that a configuration asks for, in order.

    Raises:
        LVSAError: without a prompt; for flags that exclude one another, a file that cannot be
            read, or requests in it that cannot be understood.
    """
    listing, video = config.listing, config.video
    if listing.from_record is not None:
        again = [_again(listing.from_record, config)]
        _check_replicas(config.processes.replicas, again)
        return again
    if listing.prompts is None:
        if video.prompt is None:
            raise LVSAError(
                'give --prompt TEXT, or --prompts FILE for many videos; --prompt "" leaves what '
                "the video shows to the model"
            )
        requests = [Request(_one(config, {}))]
    else:
        for name, value in (("prompt", video.prompt), ("output-name", config.output.output_name)):
            if value is not None:
                raise LVSAError(f"--{name} and --prompts exclude one another: the file has its own")
        requests = list(_read(listing.prompts, config))
    if listing.seeds and config.sampling.seed:
        raise LVSAError(f"--seed {config.sampling.seed} and --seeds exclude one another")
    twice = [seed for i, seed in enumerate(listing.seeds) if seed in listing.seeds[:i]]
    if twice:
        raise LVSAError(f"--seeds has {twice[0]} twice")
    requests = [each for request in requests for each in _seeded(request, listing.seeds)]
    _check_replicas(config.processes.replicas, requests)
    return list(map(_in_list, requests)) if is_list(requests) else requests


def _in_list(request: Request) -> Request:
    """A request whose transformers come back for the next one, and wait in the host's memory.

    Unless it is asked for, only those of the first rank make way for the decoding there.
    """
    processes, tuning = request.config.processes, request.config.tuning
    if processes.vae_parallel != "auto" or tuning.offload != "none" or tuning.shard_weights:
        return request
    alone = replace(processes, vae_parallel="off")
    return replace(request, config=replace(request.config, processes=alone))


def _again(path: Path, config: GenerateConfig) -> Request:
    """The video of a record once more."""
    if config.listing.prompts is not None or config.listing.seeds:
        raise LVSAError("--from makes one video again; it excludes --prompts and --seeds")
    record = read_record(path)
    return Request(_one(config, output_of(record, path, config.as_dict())), repeats=record)


def is_list(requests: Sequence[Request]) -> bool:
    """Whether these are of a list, which may be one of one request."""
    return len(requests) > 1 or requests[0].where != ""


def _check_replicas(replicas: int, requests: Sequence[Request]) -> None:
    """Stops where several replicas are asked for, and there are no requests to take from."""
    if replicas > 1 and not is_list(requests):
        raise LVSAError(
            f"--replicas {replicas}: each makes requests of a list, and this is one video; "
            "--replicas 1 has all ranks share it, --prompts FILE or --seeds 0 1 makes a list"
        )


def _one(config: GenerateConfig, own: Mapping[str, Any]) -> GenerateConfig:
    """A configuration of one video: the flags', with what its request says for itself."""
    without_list = dict.fromkeys(field.name for field in fields(ListConfig))
    return GenerateConfig.from_dict({**config.as_dict(), **without_list, **own})


def _seeded(request: Request, seeds: tuple[int, ...]) -> Iterator[Request]:
    """A request with each of the seeds."""
    name = request.config.output.output_name
    for seed in seeds:
        own = {"seed": seed, "output_name": None if name is None else f"{bare(name)}-{seed}"}
        where = ", ".join(filter(None, (request.where, f"seed {seed}")))
        yield Request(_one(request.config, own), where)
    if not seeds:
        yield request


def bare(name: str) -> str:
    """A name without the suffix of a video."""
    return name[:-4] if name.lower().endswith(".mp4") else name


def _read(path: Path, config: GenerateConfig) -> Iterator[Request]:
    """The requests of a file; says everything that is wrong with it at once."""
    problems: dict[str, str] = {}
    requests = []
    for line, entry in _entries(path):
        where = f"{path.name}, line {line}"
        try:
            own = _checked(entry, path.parent)
            if config.listing.seeds and "seed" in own:
                raise LVSAError(f"seed is {own['seed']}, and --seeds gives others; give one")
            requests.append(Request(_one(config, own), where))
        except LVSAError as error:
            problems[where] = str(error)
    if problems:
        raise ListError.of(problems)
    if not requests:
        raise LVSAError(f"--prompts {path} has no prompt")
    yield from requests


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Texts or mappings of a file, each with its line; the suffix says which."""
    text, suffix = read_text(path, "--prompts"), path.suffix.lower()
    try:
        if suffix in (".yaml", ".yml"):
            if len(text) > MOST_YAML_CHARACTERS:
                raise LVSAError(f"more than {MOST_YAML_CHARACTERS:,} characters of YAML; as JSONL "
                                "any number is read at once")  # fmt: skip
            yield from yaml_mappings(text)
            return
        lines = enumerate(text.split("\n"), 1)
        for number, line in ((n, t.strip()) for n, t in lines if t.strip()):
            if suffix == ".jsonl":
                yield number, _json(number, line)
            elif suffix == ".json" or line.startswith(("{", "[{")):
                raise LVSAError(f"line {number}: JSON has one request a line, in a file *.jsonl")
            else:
                yield number, line
    except (LVSAError, yaml.YAMLError) as error:
        raise LVSAError(f"--prompts {path}: {error}") from error


def _json(number: int, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise LVSAError(f"line {number}: {error}") from error


def _checked(entry: Any, folder: Path) -> dict[str, Any]:
    """What a request says for itself, by field; files are looked for beside the list."""
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise LVSAError(f"{entry!r} is no request, which is a text or a mapping with a prompt")
    own: dict[str, Any] = {}
    for key, value in entry.items():
        name = field_name(key)
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, 1)
            raise LVSAError(
                f"a request has no {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it may have {', '.join(KEYS)}")
            )
        if name in own:
            raise LVSAError(f"{name} is given twice, the second time as {key!r}")
        if value is not None:
            own[name] = str(folder / value) if name in FILES and isinstance(value, str) else value
    if "prompt" not in own:
        raise LVSAError('there is no prompt; "" leaves what the video shows to the model')
    return own
