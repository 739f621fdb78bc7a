"""How long a denoising step would take on many GPUs, on paper: a prediction, not a measurement.

Compute is the roofline's (`lvsa.roofline`) for attention, and counted operations over published
rates for the rest of the model. What travels follows from the exchanges' tables and the ranks'
nodes; keys and values travel while others are attended, weights that ranks share while the layer
before is computed; all else is waited for. A step takes as long as its slowest rank.

Ranks are numbered as on a mesh: guidance outermost, then frames, then heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lvsa.exchange import get_exchange
from lvsa.exchange.base import own_pairs, token_bytes
from lvsa.hardware import Hardware
from lvsa.mesh import PREFERENCE, MeshSizes
from lvsa.network import Floats, Network
from lvsa.pattern import Bools, Ints
from lvsa.roofline import LAUNCH_SECONDS, Prediction, predict
from lvsa.shards import FrameGrid, Shards

TIE = 0.01
"""Share of a step's time below which two are taken to be equally fast."""


@dataclass(frozen=True)
class Load:
    """Work of a forward beside the attention among video tokens: floating-point operations of
    matrix products and attention over text, and bytes that all else reads and writes."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a model does in a step, however it is shared.

    Args:
        heads, head_dim, layers: of its attention among video tokens.
        dtype: of its tensors.
        passes: of guidance, 1 or 2.
        token: work of a pass on one video token.
        once: work of a pass that every rank does: on text, on timesteps.
        launches: operations of a pass.
        sample: bytes that the last layer makes of one token.
        shared: bytes of weights that ranks hold parts of, and gather layer by layer in each pass;
            0 where every rank holds all.
    """

    heads: int
    head_dim: int
    layers: int
    dtype: torch.dtype
    passes: int
    token: Load
    once: Load
    launches: int
    sample: float
    shared: float = 0.0


@dataclass(frozen=True)
class StepCost:
    """A step on one mesh, with one exchange, on paper.

    Args:
        attention: seconds of attention among video tokens.
        rest: seconds of the rest of the model.
        frames: seconds that keys and values are waited for.
        heads: seconds in which tokens are exchanged for heads.
        outputs: seconds in which results of passes are gathered and exchanged.
        weights: seconds that weights which ranks share are waited for.
        inside, between: bytes that a rank receives per layer and pass, within its node and from
            other nodes; of the rank that receives most.
    """

    mesh: MeshSizes
    exchange: str
    attention: float
    rest: float
    frames: float
    heads: float
    outputs: float
    weights: float
    inside: float
    between: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        waits = self.frames + self.heads + self.outputs + self.weights
        return self.attention + self.rest + waits


def step_cost(
    work: Work,
    grid: FrameGrid,
    attended: Bools,
    mesh: MeshSizes,
    exchange: str,
    hardware: Hardware,
    backend: str = "auto",
) -> StepCost | None:
    """What a step takes.

    Args:
        work: of the model.
        grid: of the video's tokens.
        attended: ``[T, T]``, of one offset.
        mesh: the ranks of one video.
        exchange: name of one.
        hardware: of every rank.
        backend: name of the attention's.

    Returns:
        None where there is no model of the attention, see `lvsa.roofline.predict`.

    Raises:
        DivisibilityError: where the tokens do not divide among the ranks.
    """
    F, U, G = mesh.frames, mesh.heads, mesh.guidance
    L = Shards(grid, mesh.sequence).local_tokens
    frames = Shards(grid, F)
    ranks = np.arange(mesh.video).reshape(G, F, U)
    network = Network(hardware, mesh.video)
    middle = middle_rank(
        frames,
        attended,
        exchange,
        hardware,
        heads=work.heads // U,
        head_dim=work.head_dim,
        backend=backend,
        dtype=work.dtype,
    )
    if middle is None:
        return None
    of_pair = middle.prediction.seconds / middle.pairs
    phases = get_exchange(exchange).phases(frames, attended)

    pending = own_pairs(frames, attended) * of_pair
    busy, waited = pending.copy(), np.zeros(F)
    of_token = token_bytes(1, work.heads // U, work.head_dim, work.dtype)
    transfers = []
    for phase in phases:
        travel = network.transfer(
            ranks[:, phase.sender].ravel(),
            ranks[:, phase.receiver].ravel(),
            np.tile(np.repeat(phase.tokens * of_token, U), G),
            phase.hops,
        )
        transfers.append(travel)
        arrives = travel.seconds.reshape(G, F, U).max((0, 2))
        waited += np.maximum(0, arrives - pending)
        pending = phase.pairs * of_pair
        busy += pending
    slowest = int((busy + waited).argmax())

    among_heads = []
    if U > 1:
        sender, receiver = _each_to_each(ranks)
        # Keys and values, queries, outputs.
        for tensors in (2, 1, 1):
            part = tensors * L * of_token / 2
            among_heads.append(network.transfer(sender, receiver, np.full(len(sender), part)))
    transfers += among_heads

    passes = work.passes // G
    calls = passes * work.layers
    rest = _rest(work, L, hardware)
    return StepCost(
        mesh=mesh,
        exchange=exchange,
        attention=float(busy[slowest]) * calls,
        rest=rest * passes,
        frames=float(waited[slowest]) * calls,
        heads=sum(float(travel.seconds.max()) for travel in among_heads) * calls,
        outputs=_outputs(work, L, ranks, network),
        weights=_weights(work, float(busy[slowest]) + rest / work.layers, ranks, network) * passes,
        inside=_most([travel.inside for travel in transfers]),
        between=_most([travel.between for travel in transfers]),
    )


class MiddleRank(NamedTuple):
    """Attention of one layer and pass on a rank in the middle, at one offset, all heads it holds.

    Args:
        prediction: of it.
        pairs: (query, key) token pairs.
    """

    prediction: Prediction
    pairs: int


def middle_rank(
    shards: Shards,
    attended: Bools,
    exchange: str,
    hardware: Hardware,
    *,
    heads: int,
    head_dim: int,
    backend: str,
    dtype: torch.dtype,
) -> MiddleRank | None:
    """What attention takes on a rank in the middle; None where there is no model of it."""
    plan = get_exchange(exchange).plan(shards, attended, (shards.world - 1) // 2)
    found = predict(
        [block.layout for block in plan.blocks],
        hardware,
        heads=heads,
        head_dim=head_dim,
        backend=backend,
        dtype=dtype,
    )
    return None if found is None else MiddleRank(found, plan.pairs)


def _each_to_each(ranks: Ints) -> tuple[Ints, Ints]:
    """Sender and receiver of every transfer within the groups ``[G, F, U]`` of ranks."""
    groups = ranks.reshape(-1, ranks.shape[-1])
    U = groups.shape[1]
    sender, receiver = np.nonzero(~np.eye(U, dtype=np.bool_))
    return groups[:, sender].ravel(), groups[:, receiver].ravel()


def _rest(work: Work, tokens: int, hardware: Hardware) -> float:
    """Seconds of one pass without attention among video tokens."""
    flops = work.token.flops * tokens + work.once.flops
    moved = work.token.bytes * tokens + work.once.bytes
    products = flops / (hardware.flops * hardware.matmul)
    return products + moved / hardware.bandwidth + work.launches * LAUNCH_SECONDS


def _outputs(work: Work, tokens: int, ranks: Ints, network: Network) -> float:
    """Seconds in which the parts of every pass are gathered, and the two passes brought together
    where they are made by different ranks."""
    seconds, sequence = 0.0, ranks.reshape(len(ranks), -1)
    N = sequence.shape[1]
    if N > 1:
        sender, receiver = sequence.ravel(), np.roll(sequence, -1, axis=1).ravel()
        amount = np.full(len(sender), (N - 1) * tokens * work.sample)
        gathered = network.transfer(sender, receiver, amount, N - 1)
        seconds += float(gathered.seconds.max()) * (work.passes // len(sequence))
    if len(sequence) > 1:
        sender, receiver = sequence.ravel(), sequence[::-1].ravel()
        amount = np.full(len(sender), N * tokens * work.sample)
        seconds += float(network.transfer(sender, receiver, amount).seconds.max())
    return seconds


def _weights(work: Work, of_layer: float, ranks: Ints, network: Network) -> float:
    """Seconds of a pass in which a layer's weights are waited for, while parts of them are gathered
    from all ranks of the video: the first layer's, and what the work of a layer does not cover of
    the next one's. That keys and values need the links as well is left out."""
    everyone = ranks.ravel()
    N = len(everyone)
    if N == 1 or not work.shared:
        return 0.0
    amount = np.full(N, work.shared / work.layers * (N - 1) / N)
    gathered = network.transfer(everyone, np.roll(everyone, -1), amount, N - 1)
    of_weights = float(gathered.seconds.max())
    return of_weights + (work.layers - 1) * max(0.0, of_weights - of_layer)


def _most(received: Sequence[Floats]) -> float:
    return float(np.sum(received, axis=0).max()) if received else 0.0


def costs(
    work: Work,
    grid: FrameGrid,
    attended: Bools,
    meshes: Sequence[tuple[MeshSizes, str]],
    hardware: Hardware,
    backend: str = "auto",
) -> list[StepCost]:
    """What a step takes on each of some meshes with their exchanges, the fastest first.

    Empty where there is no model of the attention.
    """
    found = [
        step_cost(work, grid, attended, mesh, exchange, hardware, backend)
        for mesh, exchange in meshes
    ]
    return sorted((cost for cost in found if cost is not None), key=lambda cost: cost.seconds)


def best(found: Sequence[StepCost]) -> StepCost:
    """The fastest; of those that are as fast the one that sends least, between nodes first."""
    limit = min(cost.seconds for cost in found) * (1 + TIE)
    fast = [cost for cost in found if cost.seconds <= limit]
    return min(fast, key=lambda c: (c.between, c.inside, PREFERENCE.index(c.exchange)))
