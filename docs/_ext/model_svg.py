"""The picture of the shipped model as a file with colours of its own.

python docs/_ext/model_svg.py
"""

from pathlib import Path

import refseq2seq as rs

FILE = Path(__file__).parents[1] / "_static" / "model.svg"
COLOURS = """<style>
svg{color:#1d232b;background:#fff}
@media (prefers-color-scheme:dark){svg{color:#e8ecf1;background:#14181d}}"""


def standalone() -> str:
    """The picture, all parts closed, with a size and colours for light and dark."""
    svg = rs.explain.picture(rs.load("g2p"), unfold=())
    width, height = svg.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    size = f'<svg width="{width}" height="{height}"'
    return svg.replace("<svg", size, 1).replace("<style>", COLOURS, 1) + "\n"


if __name__ == "__main__":
    FILE.write_text(standalone(), encoding="utf-8")
