"""Plants every fault into a generation on two ranks, starts it again, and tells what happened.

    python studies/reliability/table.py --output-dir outputs/reliability

Writes `faults.json` and a table in Markdown, `faults.md`.
"""

import functools
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from lvsa.launch.checkpoint.folder import FOLDER
from lvsa.launch.processes.reporting import SomeFailed, run_reporting
from lvsa.launch.records.output import written_whole
from lvsa.launch.records.temporary import PART
from lvsa.studies.reliability.faults import KINDS, PHASES, SHARED, Fault, all_faults
from lvsa.studies.reliability.job import NAME, Outcome, run

logger = logging.getLogger("lvsa.studies.reliability.table")

WORLD = 2
# What a job leaves that went well.
MADE = (f"{NAME}.json", f"{NAME}.mp4")
TIMEOUT = 5
ARGUMENTS = [
    "--model", "tiny-wan", "--prompt", "a red circle", "--num-frames", "93", "--steps", "4",
    "--lvsa", "--rotate-keyframes", "--timeout", str(TIMEOUT),
    "--checkpoint-seconds", "0",
]  # fmt: skip


@dataclass(frozen=True)
class TableConfig:
    """What is tried, and where the table goes."""

    output_dir: Path = Path("outputs/reliability")
    """Folder for the table."""
    phases: tuple[str, ...] = PHASES
    """Phases in which faults happen."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of faults."""


@dataclass(frozen=True)
class Row:
    """A fault, and what came of it.

    Args:
        message: what the ranks said of it.
        named: whether that names the rank and ends with no traceback before it.
        failed: whether every rank ended, with another exit code than 0.
        left: files that the fault left, other than whole checkpoints.
        again: whether the same command then made the undisturbed video, bit for bit.
        after: what that did not do again: denoising steps, or all of them.
    """

    phase: str
    rank: int
    kind: str
    seconds: float
    message: str
    named: bool
    failed: bool
    left: tuple[str, ...]
    again: bool
    after: str

    @property
    def well(self) -> bool:
        """Whether all is as it should be."""
        return self.named and self.failed and not self.left and self.again


def arguments_of(phase: str) -> tuple[str, ...]:
    """The launcher's arguments for a job that has this phase."""
    return (*ARGUMENTS, *SHARED.get(phase, ("--vae-parallel", "off")))


def undisturbed(folder: Path, arguments: tuple[str, ...]) -> bytes:
    """The video that all others with these arguments have to equal."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    outcome = run(folder, WORLD, arguments)
    if set(outcome.codes) != {0}:
        raise RuntimeError(f"the job fails without a fault: {outcome}")
    return (folder / "out" / f"{NAME}.mp4").read_bytes()


def tried(fault: Fault, folder: Path, video: bytes) -> Row:
    """Plants one fault, and starts the job again after it."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    arguments = arguments_of(fault.phase)
    outcome = run(folder, WORLD, arguments, fault)
    if not outcome.struck:
        raise RuntimeError(f"{fault} did not happen: {outcome}")
    message = _message(outcome)
    again = run(folder, WORLD, arguments)
    file = folder / "out" / f"{NAME}.mp4"
    return Row(
        phase=fault.phase,
        rank=fault.rank,
        kind=fault.kind,
        seconds=round(outcome.seconds, 1),
        message=message,
        named=f"rank {fault.rank} on " in message and "Traceback" not in outcome.said,
        failed=None not in outcome.codes and 0 not in outcome.codes,
        left=tuple(name for name in outcome.files if not _is_checkpoint(name)),
        again=set(again.codes) == {0} and again.files == MADE and file.read_bytes() == video,
        after=_after(again),
    )


def _is_checkpoint(name: str) -> bool:
    """Whether a file is one that a restart goes on from, and not a part of one."""
    path = Path(name)
    return path.parts[0] == FOLDER and not PART.fullmatch(path.name)


def _after(again: Outcome) -> str:
    """Where a restart says that it goes on."""
    if "denoising was done before" in again.said:
        return "all steps"
    found = re.search(r"going on after step (\d+)", again.said)
    return f"step {found[1]}" if found else "nothing"


def _message(outcome: Outcome) -> str:
    found = re.findall(r"^ERROR: (.*)$", outcome.said, re.M)
    return " | ".join(found)


def make_table(config: TableConfig) -> list[Row]:
    """Tries all faults that are asked for, and writes the table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = functools.cache(lambda arguments: undisturbed(folder, arguments))
        for fault in all_faults(WORLD):
            if fault.phase in config.phases and fault.kind in config.kinds:
                rows.append(tried(fault, folder, video(arguments_of(fault.phase))))
                logger.info("%s: %.1f s, %s", fault, rows[-1].seconds, rows[-1].message)
                if not rows[-1].well:
                    logger.error("not as it should be: %s", rows[-1])
    config.output_dir.mkdir(parents=True, exist_ok=True)
    texts = {"faults.json": json.dumps([asdict(row) for row in rows], indent=2) + "\n",
             "faults.md": as_markdown(rows)}  # fmt: skip
    for file, text in texts.items():
        with written_whole(config.output_dir / file) as part:
            part.write_text(text, encoding="utf-8")
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """Seconds to the end by phase, rank and kind; what is not as it should be is named."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    heads = ["in", "rank", *kinds, "goes on after"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (phase, rank), some in itertools.groupby(rows, lambda row: (row.phase, row.rank)):
        of_kind = {row.kind: row for row in some}
        cells = [_cell(of_kind[kind]) for kind in kinds]
        after = sorted({row.after for row in of_kind.values()})
        lines.append("| " + " | ".join([phase, str(rank), *cells, ", ".join(after)]) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    wrong = [
        text
        for text, is_so in (
            ("not named", not row.named),
            ("a rank lived on or ended with 0", not row.failed),
            (f"left {', '.join(row.left)}", bool(row.left)),
            ("other bits after a restart", not row.again),
        )
        if is_so
    ]
    return ", ".join([f"{row.seconds:.1f}", *wrong])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study; exits with 1 where a fault ended otherwise than it should."""

    def work(_: object) -> None:
        rows = make_table(tyro.cli(TableConfig, args=argv, description=__doc__))
        bad = sum(not row.well for row in rows)
        if bad:
            raise SomeFailed(f"{bad} of {len(rows)} faults did not end as they should")

    sys.exit(run_reporting(work))


if __name__ == "__main__":
    main()
