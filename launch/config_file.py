"""Settings from a file: a flat YAML mapping, or the JSON record of a video that was made.

Files are always UTF-8. What could hide a mistake, or take minutes to read, is an error: a key that
stands twice, a value inside a value, an alias, a file of another size than settings have.
"""

import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from lvsa.errors import LVSAError

MOST_YAML_BYTES = 64 * 1024
# Records hold the times of every step on every rank.
MOST_JSON_BYTES = 64 * 1024**2


def read_settings(path: Path, option: str = "--config") -> dict[str, Any]:
    """The settings in a file, by the keys that it has.

    Raises:
        LVSAError: for a file that cannot be read, or is no mapping of keys to plain values.
    """
    text = read_text(path, option)
    try:
        # JSON is YAML, but of the two only JSON is read fast, and records are long.
        content = _json(text) if text.lstrip().startswith("{") else _yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise LVSAError(f"{option} {path}: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]
    if not isinstance(content, dict):
        raise LVSAError(
            f"{option} {path} must be a mapping of flags to values, like num_frames: 81"
        )
    return content


def read_text(path: Path, option: str) -> str:
    """The text of a file that an option names.

    Raises:
        LVSAError: for a file that cannot be read, is too large for settings, or is not UTF-8.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST_JSON_BYTES else None
    except OSError as error:
        raise LVSAError(f"{option} {path}: {error.strerror}") from error
    if data is None:
        raise LVSAError(f"{option} {path} is larger than {MOST_JSON_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LVSAError(f"{option} {path}: {error}") from error


def yaml_mappings(text: str) -> Iterator[tuple[int, Any]]:
    """The entries of a YAML list, each with its line: flat mappings, or plain values.

    Raises:
        LVSAError: for anything else, where the iteration comes to it.
        yaml.YAMLError: for a text that is no YAML.
    """
    events = _events(text)
    if not isinstance(next(events, None), yaml.SequenceStartEvent):
        raise LVSAError("not a list of requests, like - prompt: a red circle")
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        mapping = isinstance(event, yaml.MappingStartEvent)
        yield event.start_mark.line + 1, _mapping(events) if mapping else _scalar(event)
    if next(events, None) is not None:
        raise LVSAError("more than one YAML document")


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError:
        # A mapping in YAML's own braces.
        return _yaml(text)


def _yaml(text: str) -> dict[str, Any]:
    """A flat YAML mapping."""
    if len(text) > MOST_YAML_BYTES:
        raise LVSAError(f"settings of more than {MOST_YAML_BYTES:,} characters")
    events = _events(text)
    if not isinstance(next(events, None), yaml.MappingStartEvent):
        raise LVSAError("not a mapping of flags to values, like num_frames: 81")
    found = _mapping(events)
    if next(events, None) is not None:
        raise LVSAError("more than one YAML document")
    return found


def _events(text: str) -> Iterator[Any]:
    """The nodes of a YAML text, event by event: nothing nested is ever built."""
    return (
        event
        for event in yaml.parse(text, Loader=yaml.SafeLoader)
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent)
    )


def _mapping(events: Iterator[Any]) -> dict[str, Any]:
    """A flat mapping, from behind its start to its end."""
    pairs: list[tuple[str, Any]] = []
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            break
        name, event = str(_scalar(key)), next(events)
        if isinstance(event, yaml.SequenceStartEvent):
            until_end = iter(lambda: next(events), None)
            items = takewhile(lambda e: not isinstance(e, yaml.SequenceEndEvent), until_end)
            pairs.append((name, [_scalar(item) for item in items]))
        else:
            pairs.append((name, _scalar(event)))
    return unique(pairs)


def _scalar(event: Any) -> str | bool | int | float | None:
    """A plain value by the core schema of YAML 1.2, where 012 is 12 and ``no`` is a text."""
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        raise LVSAError(f"line {line}: aliases (*{event.anchor}) are not allowed")
    if not isinstance(event, yaml.ScalarEvent):
        raise LVSAError(f"line {line}: settings are flat, without values inside of values")
    if event.tag is not None:
        raise LVSAError(f"line {line}: tags ({event.tag}) are not allowed")
    text = event.value
    if event.style is not None:
        # Quoted, or a block.
        return text
    if text in ("", "~") or text.lower() == "null":
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)(e[-+]?\d+)?", text, re.IGNORECASE):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|nan)", text, re.IGNORECASE):
        return float(text.replace(".", ""))
    return text


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs; a key that stands twice is an error."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise LVSAError(f"{key} is given twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found
