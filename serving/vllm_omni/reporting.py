"""What a server is told: each thing once, by its first process."""

import logging
from functools import lru_cache

from torch import distributed as dist

logger = logging.getLogger(__name__)


@lru_cache(maxsize=256)
def say(message: str, level: int = logging.WARNING) -> None:
    """Logs a message, once in the life of this process, if it is the first of its engine."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.log(level, "[LVSA] %s", message)
