"""A wrapper goes where it was put, and nowhere else's."""

import pytest

from lvsa.wrapping import wrap_method


class Thing:
    def name(self):
        return "own"


@pytest.fixture
def thing():
    return Thing()


def over(thing, word):
    """A wrapper that adds a word to what was there before."""
    before = thing.name
    return lambda: f"{word}({before()})"


def test_one_object_alone_is_wrapped(thing):
    undo = wrap_method(thing, "name", over(thing, "a"))
    assert (thing.name(), Thing().name()) == ("a(own)", "own")
    undo()
    undo()
    assert thing.name() == "own" and vars(thing) == {}


def test_wrappers_come_off_in_any_order_without_taking_anothers(thing):
    undo_a = wrap_method(thing, "name", over(thing, "a"))
    undo_b = wrap_method(thing, "name", over(thing, "b"))
    undo_a()
    assert thing.name() == "b(a(own))", "another's stays, and calls what was under it"
    undo_b()
    assert thing.name() == "a(own)"


def test_what_was_on_the_object_comes_back(thing):
    thing.name = own = lambda: "set by hand"
    wrap_method(thing, "name", over(thing, "a"))()
    assert thing.name is own


def test_what_is_gone_is_not_missed(thing):
    undo = wrap_method(thing, "name", over(thing, "a"))
    del thing.name
    undo()
    assert thing.name() == "own"
