"""Errors of a user: each says what was given, what is allowed, and what would work."""


class LVSAError(ValueError):
    """A mistake in the settings: the launcher prints its message without a traceback."""


class DivisibilityError(LVSAError):
    """The sequence does not divide among the ranks."""


class GridError(LVSAError):
    """A frame count or a size that the model's VAE and patch size cannot represent."""


class PlanError(LVSAError):
    """A context-parallel plan that does not fit the model it is meant for."""


class SequenceError(LVSAError):
    """The model ran on another number of tokens than LVSA was set up for."""


class BackendUnavailable(LVSAError):
    """An attention kernel was asked for that this machine or installation does not have."""


class UnknownModel(LVSAError):
    """No adapter is known under this name or for this pipeline."""


class RankMismatch(LVSAError):
    """Ranks hold different values of something that must be the same on all of them."""


class CommunicationError(RuntimeError):
    """A collective failed or timed out; the message names the rank and the operation."""


class NonFiniteError(LVSAError):
    """Latents or frames that hold infinity or not-a-number."""


class CheckpointError(LVSAError):
    """A checkpoint whose files are missing, broken, or of another model."""
