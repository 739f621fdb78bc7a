"""What a rank needs at its peak, phase by phase.

Weights are counted from the model's configs, activations by a rehearsal (see `call`). Both are what
tensors take: a GPU needs more, which is the margin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lvsa.launch.job import Job
from lvsa.launch.media.sharing import shared_in
from lvsa.launch.progress import progress
from lvsa.launch.rehearsal.call import Latents, Rehearsed, rehearse, rehearse_decoding
from lvsa.launch.rehearsal.networks import Network, networks_of
from lvsa.mesh import MeshSizes

PHASES = ("loading", "encoding", "denoising", "decoding")
MARGIN_SHARE, MARGIN_BYTES = 0.1, 10**9
"""Margin: a share of the activations, for blocks of the allocator that stand empty and for what
kernels take for themselves; and on every GPU its context, NCCL's buffers and cuBLAS's workspace."""


@dataclass(frozen=True)
class Need:
    """Bytes that a phase takes on a device at its peak: of weights, and of everything else."""

    weights: int
    activations: int

    @property
    def least(self) -> int:
        """What tensors take: a lower bound."""
        return self.weights + self.activations

    @property
    def with_margin(self) -> int:
        """What the GPU should have."""
        return self.least + round(self.activations * MARGIN_SHARE) + MARGIN_BYTES


class Rehearsals:
    """The rehearsals of a video with whatever settings, each once.

    Args:
        job: the video.

    Raises:
        CheckpointError: for a network that cannot be built from its config.
    """

    def __init__(self, job: Job) -> None:
        self.networks = networks_of(job)
        self._generations: dict[MeshSizes, Rehearsed] = {}
        self._decodings: dict[bool, int] = {}

    def generation(self, job: Job) -> Rehearsed:
        """Encoding and denoising, on the job's ranks."""
        if job.mesh not in self._generations:
            with progress(f"rehearsing the generation on {job.mesh.world} rank(s)"):
                self._generations[job.mesh] = rehearse(job, self.networks)
        return self._generations[job.mesh]

    def decoding(self, job: Job, latents: Latents) -> int:
        """Bytes that decoding takes, in tiles or not."""
        tiled = job.config.tuning.vae_tiling
        if tiled not in self._decodings:
            with progress("rehearsing the decoding"):
                self._decodings[tiled] = rehearse_decoding(job, self.networks, latents)
        return self._decodings[tiled]


@dataclass(frozen=True)
class Estimate:
    """The memory of a job's ranks.

    Args:
        job: whose tokens divide among its ranks.
        rehearsals: of its video.
        listed: whether it makes more videos after this one.
    """

    job: Job
    rehearsals: Rehearsals
    listed: bool = False

    def need(self, phase: str, first: bool = True) -> Need:
        """What a rank needs in a phase: the first, or any other."""
        return Need(self.weights(phase, first), self.activations(phase, first))

    def most(self, phases: Sequence[str] = PHASES) -> tuple[str, Need]:
        """The phase in which the first rank needs most, and what that is."""
        needs = {phase: self.need(phase) for phase in phases}
        phase = max(needs, key=lambda name: needs[name].with_margin)
        return phase, needs[phase]

    def activations(self, phase: str, first: bool = True) -> int:
        """Bytes of everything but weights in a phase.

        Only the first rank encodes and decodes, unless ranks share encoders or the decoding. What
        they share of the decoding is counted for each as if it was alone: an upper bound.
        """
        generation = self.rehearsals.generation(self.job)
        if phase == "denoising":
            return generation.denoising
        if phase == "encoding" and (first or self.sharing > 1):
            return generation.encoding
        decodes = self.job.config.output.output != "latents" and generation.latents is not None
        if phase == "decoding" and decodes and (first or shared_in(self.job) == "rows"):
            assert generation.latents is not None
            return self.rehearsals.decoding(self.job, generation.latents)
        return 0

    def loaded(self, first: bool = True) -> int:
        """Bytes of the weights that a rank loads."""
        return self._resident(first, encoders=True, transformers=True)

    def read_for_all(self) -> int:
        """Bytes of the weights that ranks share, all of which one rank reads."""
        networks = self.rehearsals.networks.values()
        return sum(network.bytes for network in networks if network.can_be_shared)

    def weights(self, phase: str, first: bool = True) -> int:
        """Bytes of weights that stand on a rank's device in a phase, at most.

        Networks leave when they are done, those that ranks share after the last video of a list
        (see `lvsa.launch.tuning.residence`).
        """
        if self.job.config.tuning.offload != "none":
            return self._offloaded(phase, first)
        stay = self.sharing > 1 and self.listed
        encoders = stay or phase in ("loading", "encoding")
        transformers = stay or phase != "decoding" or not self._decodes(first)
        return self._resident(first, encoders, transformers) + self._gathered(phase)

    def _decodes(self, first: bool) -> bool:
        """Whether a rank does: the first, or any other."""
        return first or shared_in(self.job) is not None

    @property
    def sharing(self) -> int:
        """Ranks that share the weights of transformers and encoders."""
        return self.job.mesh.video if self.job.config.tuning.shard_weights else 1

    def _offloaded(self, phase: str, first: bool) -> int:
        """Bytes of the largest thing that stands on the device at a time."""
        running = self._running(phase, first)
        model = self.job.config.tuning.offload == "model"
        return max((n.bytes if model else n.largest_group for n in running), default=0)

    def _running(self, phase: str, first: bool) -> list[Network]:
        return [
            network
            for name, network in self.rehearsals.networks.items()
            if (phase == "denoising" and network.denoises)
            or (first and phase == "encoding" and (network.encodes or name == "vae"))
            or (self._decodes(first) and phase == "decoding" and name == "vae")
        ]

    def _gathered(self, phase: str) -> int:
        """Bytes of shared weights that stand as a whole: to run, on all ranks, or to be cut."""
        if self.sharing == 1:
            return 0
        if phase == "loading":
            shared = [n for n in self.rehearsals.networks.values() if n.can_be_shared]
            return max((network.uncut for network in shared), default=0)
        running = [n for n in self._running(phase, first=True) if n.can_be_shared]
        return max((network.gathered for network in running), default=0)

    def _resident(self, first: bool, encoders: bool, transformers: bool) -> int:
        ranks = self.sharing
        return sum(
            network.part(ranks) if network.can_be_shared else network.bytes
            for network in self.rehearsals.networks.values()
            if ((encoders and (first or ranks > 1)) or not network.encodes)
            and (transformers or not network.denoises)
        )
