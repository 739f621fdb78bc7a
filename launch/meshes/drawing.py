"""A mesh for a reader: who holds which tokens and heads, and who exchanges what with whom."""

import numpy as np

from lvsa.hardware import find_hardware
from lvsa.launch.job import Job
from lvsa.pattern import Ints

SHOWN = 16
"""Ranks that have a line each."""
PASSES = ("with prompt", "without")


def mesh_lines(job: Job) -> list[str]:
    """Lines for the plan of a job whose ranks share a video; none for one rank."""
    mesh = job.mesh
    if mesh.video == 1:
        return []
    name = job.config.processes.hardware
    per_node = None if name is None else find_hardware(name).per_node
    L, H = job.shards.local_tokens, job.heads // mesh.heads
    lines = [
        "ranks      tokens that a rank holds, and in the attention the queries that it has, of "
        "which heads",
        f"             {'rank':>4} {'node':>4}  {'pass':<11}  {'holds':>17}  {'queries':>17}  "
        "heads",
    ]
    for rank, (g, f, u) in enumerate(np.ndindex(mesh.guidance, mesh.frames, mesh.heads)):
        if rank == SHOWN:
            lines.append(f"             … {mesh.video - SHOWN} more")
            break
        node = "" if per_node is None else str(rank // per_node)
        turn = PASSES[g] if mesh.guidance > 1 else "all"
        held, queries = f * mesh.heads + u, f * mesh.heads
        lines.append(
            f"             {rank:>4} {node:>4}  {turn:<11}  {_span(held * L, L):>17}  "
            f"{_span(queries * L, L * mesh.heads):>17}  {_span(u * H, H)}"
        )
    ranks = np.arange(mesh.video).reshape(mesh.guidance, mesh.frames, mesh.heads)
    for axis, what in enumerate(
        (
            "guidance   the result of a pass, once a step",
            f"frames     keys and values, by {job.config.processes.exchange}, in every layer",
            "heads      tokens for heads: queries, keys, values and outputs, in every layer",
        )
    ):
        if ranks.shape[axis] > 1:
            lines.append(f"           {what}; {_groups(ranks, axis, per_node)}")
    return lines


def _span(start: int, length: int) -> str:
    return str(start) if length == 1 else f"{start} – {start + length - 1}"


def _groups(ranks: Ints, axis: int, per_node: int | None) -> str:
    """The first group of ranks along an axis, how many there are, and whether they share nodes."""
    groups = np.moveaxis(ranks, axis, -1).reshape(-1, ranks.shape[axis])
    first = [str(rank) for rank in groups[0]]
    if len(first) > 4:
        first = [*first[:3], "…", first[-1]]
    said = "among ranks " + " ".join(first)
    if len(groups) > 1:
        said += f", and {len(groups) - 1} such group(s) more"
    if per_node is not None:
        nodes = groups // per_node
        inside = (nodes == nodes[:, :1]).all()
        said += ", inside nodes" if inside else ", between nodes"
    return said
