"""Tiny tensors are slower on many threads than on one, and ranks share the machine's cores."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported
torch.set_num_threads(1)
# As a shell starts what runs in the background, or nohup: processes of tests would inherit it.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _environment_of_each_test() -> Iterator[None]:
    """What a test leaves in the environment (RANK, WORLD_SIZE, …) does not reach the next."""
    before = dict(os.environ)
    yield
    for name in {*os.environ} - {*before, "PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"})


def _logging() -> tuple[dict[str, int], list[logging.Handler]]:
    loggers = {
        name: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    return loggers, [*logging.root.handlers]


@pytest.fixture(autouse=True)
def _logging_of_each_test() -> Iterator[None]:
    """A launcher that runs in this process sets levels and handlers: for its own test only."""
    logging.getLogger("lvsa")
    levels, handlers = _logging()
    yield
    for name, level in levels.items():
        logger = logging.getLogger(name)
        # Setting one clears what all loggers remember, and there are hundreds.
        if logger.level != level:
            logger.setLevel(level)
    # pytest's own handlers come and go between the phases of a test.
    for handler in _logging()[1]:
        if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)
