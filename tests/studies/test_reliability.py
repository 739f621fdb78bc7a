"""Faults in a generation on two ranks: some of the table, which a command makes whole."""

import functools

import pytest

from lvsa.studies.reliability.faults import KINDS, PHASES, Fault, all_faults
from lvsa.studies.reliability.table import Row, arguments_of, as_markdown, tried, undisturbed


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The video of a job with these arguments."""
    return functools.cache(
        lambda arguments: undisturbed(tmp_path_factory.mktemp("undisturbed"), arguments)
    )


@pytest.mark.parametrize(
    "fault",
    [
        Fault("loading", 1, "exception"),
        Fault("exchange", 1, "SIGKILL"),
        Fault("gather", 0, "SIGTERM"),
        Fault("denoising", 1, "SIGSTOP"),
        Fault("decoding", 0, "out of memory"),
        Fault("writing", 0, "SIGKILL"),
        Fault("sending", 1, "SIGTERM"),
        Fault("blocks", 1, "SIGKILL"),
        Fault("rows", 1, "exception"),
        Fault("tiles", 1, "SIGKILL"),
    ],
    ids=str,
)
def test_a_fault_is_named_leaves_nothing_and_the_job_goes_well_again(fault, video, tmp_path):
    row = tried(fault, tmp_path, video(arguments_of(fault.phase)))
    assert row.named and row.failed, row
    assert row.left == () and row.again, row
    assert row.seconds < 30, row


def test_the_table_tries_everything_and_names_what_went_wrong():
    assert len(all_faults(2)) == len(PHASES) * 2 * len(KINDS)
    well = Row("loading", 0, "SIGKILL", 0.25, "", True, True, (), True, "nothing")
    bad = Row("loading", 0, "SIGTERM", 1.0, "", False, False, (".a.part",), False, "step 2")
    assert well.well and not bad.well
    _, _, line = as_markdown([well, bad]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["loading", "0", "0.2"] and ".a.part" in cells[3] and cells[3] != "1.0"
    assert cells[4] == "nothing, step 2"
