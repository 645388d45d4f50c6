"""Every example of the README runs and prints what the README says."""

import doctest
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run():
    failures, examples = doctest.testfile(str(README), module_relative=False)
    assert failures == 0
    assert examples >= 10
