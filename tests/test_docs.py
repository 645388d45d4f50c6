"""Every example of the README and the pages runs and prints what the page says."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "least"),
    [("README.md", 12), ("docs/beam-search.md", 14), ("docs/your-own-model.md", 25)],
)
def test_the_examples_of_a_page_run(page, least):
    failures, examples = doctest.testfile(str(ROOT / page), module_relative=False)
    assert failures == 0
    assert examples >= least
