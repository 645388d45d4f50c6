"""docs/peers.md: every example runs, and prints what the page says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

for peer in ("torch", "transformers", "x_transformers"):
    pytest.importorskip(peer, reason=f"needs {peer}: pip install '.[peers]'")

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)


def run(code, namespace):
    """What the code prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), namespace)
    return printed.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_the_page_prints_what_it_says():
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    namespace = {}
    assert len(blocks) >= 14
    for code, expected in blocks:
        assert run(code, namespace) == expected, code
