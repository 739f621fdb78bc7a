"""The ranks of a job as a mesh: who shares what with whom.

Dimensions by name, outermost first:

- ``replica``: other videos;
- ``guidance``: the conditional and the unconditional pass of classifier-free guidance;
- ``frames``: the sequence, whose keys and values an exchange brings (`lvsa.exchange`);
- ``heads``: attention heads; tokens are exchanged for heads around the attention (DeepSpeed
  Ulysses, arXiv 2309.14509).

The sequence is cut among ``frames`` × ``heads`` ranks outside of the attention. Within it the ranks
of one ``heads`` group hold the same tokens, those of all of them, for heads of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lvsa.errors import LVSAError
from lvsa.shards import FrameGrid

DIMENSIONS = ("replica", "guidance", "frames", "heads")
PREFERENCE = ("needed", "ring", "all_gather")
"""How frames travel (`lvsa.exchange`): those first that are taken where others take as long."""
PASSES = 2
"""Ranks of a ``guidance`` dimension: with the prompt, and without."""


@dataclass(frozen=True)
class MeshSizes:
    """How many ranks each dimension has.

    Raises:
        LVSAError: for a size that cannot be.
    """

    replica: int = 1
    guidance: int = 1
    frames: int = 1
    heads: int = 1

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            if getattr(self, name) < 1:
                raise LVSAError(f"the mesh has {getattr(self, name)} {name}; it must be at least 1")
        if self.guidance not in (1, PASSES):
            raise LVSAError(
                f"the mesh has {self.guidance} ranks for guidance; allowed: 1, or {PASSES}, one "
                "for each of its passes"
            )

    @property
    def sequence(self) -> int:
        """Ranks that the tokens of a video are cut among."""
        return self.frames * self.heads

    @property
    def video(self) -> int:
        """Ranks that make one video."""
        return self.guidance * self.sequence

    @property
    def world(self) -> int:
        """All ranks."""
        return self.replica * self.video

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in DIMENSIONS}
        shown = [f"{size} {name}" for name, size in sizes.items() if size > 1]
        return " × ".join(shown) or "1 rank"

    def device_mesh(self, device_type: str) -> DeviceMesh | None:
        """The mesh over the default process group, of the dimensions that have several ranks; None
        for one rank. All ranks must call it.

        Raises:
            LVSAError: where the process group has another number of ranks.
        """
        if dist.is_initialized() and dist.get_world_size() != self.world:
            raise LVSAError(f"{self} are {self.world} ranks; {dist.get_world_size()} were started")
        if self.world == 1:
            return None
        # A dimension of one rank would cost a process group, and with NCCL a communicator.
        names = tuple(name for name in DIMENSIONS if getattr(self, name) > 1)
        shape = tuple(getattr(self, name) for name in names)
        return init_device_mesh(device_type, shape, mesh_dim_names=names)


def mesh_sizes(
    world: int, replicas: int = 1, guidance_parallel: bool = False, ulysses: int = 1
) -> MeshSizes:
    """The mesh of so many ranks; what the other dimensions leave is ``frames``.

    Raises:
        LVSAError: where they do not divide the ranks; names what can.
    """
    guidance = PASSES if guidance_parallel else 1
    unit = replicas * guidance * ulysses
    if world % unit or world < unit:
        nearest = [n for n in (world // unit * unit, (world // unit + 1) * unit) if n]
        raise LVSAError(
            f"{replicas} replica(s) × {guidance} for guidance × {ulysses} for heads do not divide "
            f"{world} rank(s); nearest numbers of ranks that work: {' or '.join(map(str, nearest))}"
        )
    return MeshSizes(replicas, guidance, world // unit, ulysses)


def possible(
    world: int,
    grid: FrameGrid,
    heads: int,
    exchanges: Sequence[str] = PREFERENCE,
    *,
    passes: int = 1,
    guidance: bool | None = None,
    ulysses: int | None = None,
) -> list[tuple[MeshSizes, str]]:
    """Meshes of so many ranks, each with each exchange, that a video can be made on.

    Args:
        world: ranks of the video.
        grid: of its tokens, which must divide.
        heads: of attention.
        exchanges: names; on one rank of frames only the first, since nothing travels.
        passes: of guidance.
        guidance: whether its passes have ranks of their own; None for both ways.
        ulysses: ranks that share heads; None for any.
    """
    found = []
    for G in (1, 2):
        if world % G or (G == 2 and passes != 2) or (guidance is not None and guidance != (G == 2)):
            continue
        for U in range(1, heads + 1):
            if heads % U or world // G % U or grid.tokens % (world // G):
                continue
            if ulysses is not None and ulysses != U:
                continue
            mesh = MeshSizes(guidance=G, frames=world // G // U, heads=U)
            found += [(mesh, name) for name in (exchanges if mesh.frames > 1 else exchanges[:1])]
    return found


@dataclass(frozen=True)
class VideoMesh:
    """The groups of this rank that make one video. A group of one rank is None.

    Args:
        video: all ranks of the video.
        guidance: the rank of the other pass with the same tokens.
        sequence: the ranks that the tokens are cut among, as a one-dimensional mesh; ``heads``
            varies fastest.
        frames: ranks with the same heads, among which keys and values travel.
        heads: ranks that exchange tokens for heads.
    """

    video: dist.ProcessGroup | None = None
    guidance: dist.ProcessGroup | None = None
    sequence: DeviceMesh | None = None
    frames: dist.ProcessGroup | None = None
    heads: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> "VideoMesh":
        """The groups of a device mesh.

        Args:
            mesh: with dimensions named as in `DIMENSIONS`, in that order; any can be missing. One
                dimension of another name is taken for ``frames``. None is one process. All ranks
                of the mesh must call this.

        Raises:
            LVSAError: for dimensions that are not known, or in another order.
        """
        if mesh is None:
            return cls()
        names = tuple(mesh.mesh_dim_names or ())
        if mesh.ndim == 1 and not set(names) & set(DIMENSIONS):
            if mesh.size() == 1:
                return cls()
            return cls(video=mesh.get_group(), sequence=mesh, frames=mesh.get_group())
        known = tuple(name for name in DIMENSIONS if name in names)
        if not names or names != known:
            raise LVSAError(
                f"the mesh has the dimensions {names or f'{mesh.ndim} without names'}; allowed: "
                f"{', '.join(DIMENSIONS)}, any of them, in this order"
            )

        return cls(
            video=_group(mesh, "guidance", "frames", "heads"),
            guidance=_group(mesh, "guidance"),
            sequence=_part(mesh, "frames", "heads"),
            frames=_group(mesh, "frames"),
            heads=_group(mesh, "heads"),
        )


def _group(mesh: DeviceMesh, *dimensions: str) -> dist.ProcessGroup | None:
    """The group of these dimensions of a mesh; None for one rank."""
    part = _part(mesh, *dimensions)
    return None if part is None else part.get_group()


def _part(mesh: DeviceMesh, *dimensions: str) -> DeviceMesh | None:
    """These dimensions of a mesh as one; None for one rank."""
    names = tuple(name for name in dimensions if name in (mesh.mesh_dim_names or ()))
    if not names:
        return None
    if len(names) == 1:
        return mesh[names[0]]
    return mesh[names]._flatten("_".join(names))
