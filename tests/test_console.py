"""The examples of pages that have console blocks: commands are run, what they print is compared."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("vectors.md", "scale.md")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    for page in PAGES:
        found = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
        yield from (pytest.param(b, id=f"{page}-{i}") for i, b in enumerate(found))


@pytest.mark.parametrize("block", list(blocks()))
def test_a_console_block_prints_what_the_page_says(block, tmp_path):
    if re.search(r"^\$ cc ", block, re.MULTILINE) and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    commands = re.findall(r"^\$ (.*\n(?:> .*\n)*)", block, re.MULTILINE)
    expected = re.sub(r"^(\$|>) .*\n", "", block, flags=re.MULTILINE)
    script = "".join(command.replace("\n> ", "\n") for command in commands)
    names = f'refseq2seq() {{ "{sys.executable}" -m refseq2seq "$@"; }}\n'
    names += f'python() {{ "{sys.executable}" "$@"; }}\n'
    result = subprocess.run(
        ["bash", "-c", names + "set -euo pipefail\n" + script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout == expected
