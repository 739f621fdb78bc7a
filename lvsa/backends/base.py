"""What an attention kernel must do."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState


class Backend(ABC):
    """A block-sparse attention kernel. Layouts come with every table that it reads."""

    name: ClassVar[str]

    @abstractmethod
    def attend(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        layout: BlockLayout,
        scale: float | None = None,
    ) -> AttentionState:
        """Softmax attention of every query over its ranges of the block.

        Args:
            q_BLHD: local queries, L = ``layout.n_queries``.
            k_BCHD, v_BCHD: the block; any strides with a contiguous last dimension.
            layout: which ranges each query attends.
            scale: of the scores; 1/sqrt(D) by default.

        Returns:
            Output in the dtype of the queries or of the log-sum-exp, zero for queries that attend
            nothing here, and the natural log-sum-exp ``[B, H, L]`` in float32 (float64 for
            float64), −inf for them.
        """

    @abstractmethod
    def attend_all(
        self, q_BLHD: Tensor, k_BCHD: Tensor, v_BCHD: Tensor, scale: float | None = None
    ) -> AttentionState:
        """Softmax attention of every query over every key, of which there may be none.

        Arguments and result as `attend`.
        """
