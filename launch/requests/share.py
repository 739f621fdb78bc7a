"""One job's part of a list that several jobs make."""

from collections.abc import Sequence

from lvsa.errors import LVSAError
from lvsa.launch.requests.lists import Request
from lvsa.launch.requests.names import named


def share_of(requests: Sequence[Request], share: str | None) -> list[Request]:
    """Every n-th request of a list, beginning with number k: all jobs together make it once.

    Args:
        share: ``k/n`` with 0 ≤ k < n; None for the whole list.

    Returns:
        Requests with the names that they have in the whole list; none where there are fewer than n.

    Raises:
        LVSAError: for a share that is not written so.
    """
    if share is None:
        return list(requests)
    number, slash, count = share.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise LVSAError(
            f"--share is {share!r}; it must be K/N with K from 0 to N - 1, as in 0/4 to 3/4"
        )
    return named(requests)[int(number) :: int(count)]
