"""A video made again from its record: what it needs, and whether the bits came out the same."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvsa.errors import LVSAError
from lvsa.launch.config_file import read_text
from lvsa.settings import flag

logger = logging.getLogger(__name__)

# What the bits of a video depend on besides its settings.
ORIGINS = ("versions", "code", "weights")
AGAIN = "-again"


def read_record(path: Path) -> dict[str, Any]:
    """The record of a video.

    Raises:
        LVSAError: for a file that is none.
    """
    try:
        record = json.loads(read_text(path, "--from"))
        _ = (record["config"]["seed"], record["video"]["sha256"], record["sequence"]["ranks"])
        _ = (record["inputs"].items(), [record[name] for name in ORIGINS])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, LVSAError):
            raise
        raise LVSAError(
            f"--from {path} is no record of a video, which lies beside it as NAME.json; settings "
            "alone are for --config"
        ) from error
    return dict(record)


def output_of(record: Mapping[str, Any], path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the new video goes: beside the old one, which stays, unless flags say otherwise.

    Args:
        record: of the old video.
        path: of the record.
        given: all settings, those of the record with what the flags changed.
    """
    then, own = record["config"], {}
    if given["output_dir"] == then["output_dir"]:
        own["output_dir"] = str(path.parent)
    if given["output_name"] == then["output_name"] and not given["overwrite"]:
        own["output_name"] = path.stem + AGAIN
    return own


def check_repeat(record: Mapping[str, Any], inputs: Mapping[str, Any], world: int) -> None:
    """Holds what is there against what the record says, before any work.

    Args:
        record: of the old video.
        inputs: digests of the files that the new one starts from.
        world: ranks that share the tokens.

    Raises:
        LVSAError: for an image or a video that is another by now.
    """
    for name, entry in inputs.items():
        then = record["inputs"].get(name)
        if then is not None and then != entry:
            raise LVSAError(f"{flag(name)}: the file is not the one that the record names: {then}")
    ranks = record["sequence"]["ranks"]
    if ranks != world:
        logger.warning(
            "the record is of %d rank(s), this job has %d: what is summed in another order "
            "differs in the last bits",
            ranks,
            world,
        )


def tell_repeated(record: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Says whether a video came out the same, and if not, what differs."""
    if record["video"]["sha256"] == new["video"]["sha256"]:
        logger.info("the same bits as the record's: SHA-256 %s", new["video"]["sha256"])
        return
    settings = [
        name
        for name in new["config"]
        if name not in ("output_dir", "output_name", "overwrite")
        and new["config"][name] != record["config"].get(name)
    ]
    origins = [name for name in ORIGINS if new[name] != record[name]]
    ranks = ["ranks"] * (new["sequence"]["ranks"] != record["sequence"]["ranks"])
    machines = [
        name
        for name in ("cpu", "device", "threads", "kernel")
        if [rank.get(name) for rank in new["ranks"]] != [rank.get(name) for rank in record["ranks"]]
    ]
    differ = ", ".join([*settings, *origins, *ranks, *machines]) or "nothing that the record names"
    logger.warning("not the same bits as the record's; what differs: %s", differ)
