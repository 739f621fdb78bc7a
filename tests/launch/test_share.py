"""Shares of a list: together they are the list, with the same names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.requests.lists import requests_of
from lvsa.launch.requests.names import named
from lvsa.launch.requests.share import share_of
from tests.support.errors import refuses
from tests.support.launched import python


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5))
def test_shares_make_the_list_once(videos, count):
    seeds = [str(seed % 3) if seed < 3 else str(seed) for seed in range(videos)]
    requests = requests_of(parse(["--prompt", "a circle", "--seeds", *seeds]))
    shares = [share_of(requests, f"{number}/{count}") for number in range(count)]
    names = [each.config.output.output_name for share in shares for each in share]
    whole = [each.config.output.output_name for each in named(requests)]
    assert sorted(names) == sorted(whole)
    # What is planned later gives them no other names.
    assert [named(share) for share in shares] == shares
    assert share_of(requests, None) == requests


def test_names_are_those_of_the_whole_list(tmp_path):
    """Two requests of one name get different ones, also where a share holds one of them."""
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a circle"}\n{"prompt": "a circle", "steps": 3}\n')
    requests = requests_of(parse(["--prompts", str(path)]))
    one, other = (share_of(requests, f"{number}/2") for number in (0, 1))
    assert one[0].config.output.output_name != other[0].config.output.output_name


@pytest.mark.parametrize("share", ["", "1", "2/2", "-1/2", "a/b", "1/0", "1/2/3"])
def test_what_is_no_share(share):
    requests = requests_of(parse(["--prompt", "a circle"]))
    with refuses(LVSAError, repr(share)):
        share_of(requests, share)


def test_an_empty_share_makes_nothing(tmp_path):
    done = python(["--prompt", "x", "--share", "1/2", "--output-dir", str(tmp_path)])
    assert done.returncode == 0 and "1/2" in done.stderr
    assert not list(tmp_path.iterdir())
