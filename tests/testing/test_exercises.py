"""`implements` accepts right functions, however written, and names the mistakes it knows."""

import importlib

import pytest

import refseq2seq as rs
from refseq2seq.testing.exercises import TOPICS


def exercise(name):
    return importlib.import_module(f"refseq2seq.testing.exercises.{TOPICS[name]}").EXERCISES[name]


MISTAKES = [(name, mistake) for name in TOPICS for mistake in exercise(name).mistakes]


@pytest.mark.parametrize("name", TOPICS)
def test_the_reference_and_the_written_function_pass(name):
    rs.testing.implements(name, exercise(name).reference)
    rs.testing.implements(name, exercise(name).written)
    assert len(exercise(name).mistakes) >= 3


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_fails_and_is_named(name, mistake):
    e = exercise(name)
    with pytest.raises(AssertionError) as raised:
        rs.testing.implements(name, lambda *a: e.written(*a, **e.mistakes[mistake]))
    assert str(raised.value).splitlines()[0] == f"{e.signature}: {mistake}"
