"""The page of a list: one HTML file beside the videos, which needs nothing from the network."""

import html
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from lvsa.launch.config import GenerateConfig
from lvsa.launch.records.output import OutputError, written_whole
from lvsa.launch.requests.plan import Video

logger = logging.getLogger(__name__)

NAME = "index.html"
GENERATOR = "LVSA launcher"
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Card:
    """What the page shows of one video.

    Args:
        name: of its file, without suffix.
        config: its settings, by the names of their flags.
        record: of the finished video; None where there is none.
        problem: why there is none; empty where it is still to come.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def compared(self) -> tuple[Any, ...]:
        """What videos that stand side by side have in common."""
        names = ("prompt", "negative_prompt", "seed", "model", "image", "last_image", "video")
        size = ("num_frames", "height", "width")
        settled = self.record["request"] if self.record else self.config
        return (*(self.config[name] for name in names), *(settled[name] for name in size))

    @property
    def seconds(self) -> float:
        """What its generation took, from text to frames."""
        parts = self.record["seconds"] if self.record else {}
        return float(sum(parts[name] for name in parts.keys() - {"loading", "writing"}))


class Page:
    """The page of a job's videos, and of all others that the folder holds.

    Args:
        videos: of the job, in the order in which the page shows them.
    """

    def __init__(self, videos: Sequence[Video]) -> None:
        self._folder = videos[0].stem.parent
        self._videos = videos
        self._records: dict[str, Mapping[str, Any]] = {}
        self._problems: dict[str, str] = {}

    def write(self, failed: Mapping[str, str] | None = None) -> None:
        """Brings the page up to date; says where that cannot be, and goes on.

        Args:
            failed: videos that failed, by name, with the reason.
        """
        self._problems.update(failed or {})
        path = self._folder / NAME
        try:
            if path.exists() and GENERATOR not in path.read_text(errors="replace"):
                logger.warning("%s is no page of this launcher, and stays as it is", path)
                return
            with written_whole(path) as temporary:
                temporary.write_text(page(self._cards()), encoding="utf-8")
        except (OSError, OutputError) as error:
            logger.warning("%s", error)

    def _cards(self) -> list[Card]:
        for file in sorted(self._folder.glob("*.json")):
            if file.stem not in self._records and file.with_suffix(".mp4").exists():
                record = _record(file)
                if record is not None:
                    self._records[file.stem] = record
        mine = {video.stem.name: video.config.as_dict() for video in self._videos}
        others = sorted(self._records.keys() - mine.keys())
        return [self._card(name, mine.get(name, {})) for name in (*mine, *others)]

    def _card(self, name: str, config: Mapping[str, Any]) -> Card:
        problem = self._problems.get(name, "")
        record = None if problem else self._records.get(name)
        return Card(name, record["config"] if record else config, record, problem)


def _record(file: Path) -> Mapping[str, Any] | None:
    """A record with all settings; None for another JSON file."""
    try:
        record = json.loads(file.read_bytes())
        config = GenerateConfig.from_dict(record["config"]).as_dict()
        whole = {"request", "seconds", "pattern", "sequence"} <= record.keys()
        return {**record, "config": config} if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def page(cards: Iterable[Card]) -> str:
    """The page; videos of one prompt, noise and size stand side by side, the dense one first."""
    groups: dict[tuple[Any, ...], list[Card]] = {}
    for card in cards:
        groups.setdefault(card.compared, []).append(card)
    everything = [card for group in groups.values() for card in group]
    made = sum(card.record is not None for card in everything)
    failed = sum(bool(card.problem) for card in everything)
    to_come = len(everything) - made - failed
    counts = [f"{made} videos"]
    counts += [f"{failed} failed"] * bool(failed) + [f"{to_come} to come"] * bool(to_come)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        generator=GENERATOR,
        counts=", ".join(counts),
        groups="\n".join(_group(group) for group in groups.values()),
    )


def _group(cards: list[Card]) -> str:
    cards = sorted(cards, key=lambda card: (bool(card.config["lvsa"]), card.name))
    prompt = str(cards[0].config["prompt"] or "") or "(no prompt)"
    dense = [card.seconds for card in cards if card.record and not card.config["lvsa"]]
    figures = "\n".join(_figure(card, dense[0] if len(dense) == 1 else 0.0) for card in cards)
    return f"<section>\n<h2>{html.escape(prompt)}</h2>\n<div>\n{figures}\n</div>\n</section>"


def _figure(card: Card, dense: float) -> str:
    """One video with its facts.

    Args:
        dense: seconds of the dense video beside it; 0 where there is none.
    """
    name = html.escape(card.name)
    if card.record is None:
        what = html.escape(card.problem) if card.problem else "to come"
        kind = "failed" if card.problem else "waiting"
        return f'<figure class="{kind}">\n<p>{what}</p>\n<figcaption>{name}</figcaption>\n</figure>'
    record, request = card.record, card.record["request"]
    faster = f" ({dense / card.seconds:.2f}× as fast)" if dense and card.config["lvsa"] else ""
    ranks = record["sequence"]["ranks"]
    facts = [
        f"LVSA, density {record['pattern']['density']:.3f}" if card.config["lvsa"] else "dense",
        f"{request['num_frames']} frames of {request['height']} × {request['width']}, "
        f"{request['fps']} fps",
        f"{request['steps']} steps, guidance {request['guidance']:g}, seed {request['seed']}",
        f"{card.seconds:.1f} s on {ranks} rank{'s' if ranks > 1 else ''}{faster}",
    ]
    given = {k: v for k, v in card.config.items() if v not in (None, "", [], False)}
    settings = "\n".join(f"{key}: {value}" for key, value in given.items())
    return (
        f'<figure>\n<video src="{quote(card.name)}.mp4" controls muted loop playsinline '
        f'preload="metadata" width="{request["width"]}" height="{request["height"]}"></video>\n'
        f"<figcaption><b>{name}</b><br>{'<br>'.join(map(html.escape, facts))}\n"
        f"<details><summary>settings</summary><pre>{html.escape(settings)}</pre></details>"
        "</figcaption>\n</figure>"
    )
