"""Look at a built site with Chromium, at desk and on a phone, by day and by night.

    python tests/docs/browse.py site [FOLDER]

prints errors on the console, requests that leave the site, parts that stick out of the window,
text with too little contrast, and pages that are too heavy; FOLDER gets a picture of every page.
Needs `pip install playwright`, and Chromium.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from check_site import MAX_WEIGHT
from playwright.sync_api import Browser, sync_playwright

WIDTHS = {"desk": 1280, "phone": 390}

STICKS_OUT = """() => {
  const boxed = e => {
    for (let a = e; a; a = a.parentElement)
      if (getComputedStyle(a).overflowX != "visible") return true;
    return false;
  };
  const wide = [...document.querySelectorAll("main *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e));
  return wide.slice(0, 3).map(e => e.tagName + " " + e.textContent.trim().slice(0, 40));
}"""

# Contrast as in WCAG 2: text against the nearest background that is not transparent.
PALE = """() => {
  const rgba = s => {
    const n = s.match(/[0-9.]+/g).map(Number);
    return n.length < 4 ? [...n, 1] : n;
  };
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] > 0.99) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e), text = node.textContent.trim();
    if (!text || !e.getClientRects().length || style.visibility == "hidden") continue;
    if (e.closest("svg, .katex-mathml, .sr-only, .visually-hidden, style, script")) continue;
    const color = rgba(style.color), behind = background(e);
    if (color[3] < 0.99) continue;
    const [a, b] = [light(color), light(behind)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < needed)
      found.set(`${color} on ${behind}`, `${ratio.toFixed(1)} ${e.tagName} ${text.slice(0, 30)}`);
  }
  return [...found].map(([colors, where]) => `${where} (${colors})`);
}"""


def faults(browser: Browser, folder: Path, pictures: Path | None) -> Iterator[str]:
    """What is wrong, one line each."""
    pages = [p.relative_to(folder) for p in sorted(folder.rglob("*.html"))]
    pages = [p for p in pages if p.parts[0] != "_static"]
    for device, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            for name in pages:
                for fault in faults_of_page(context.new_page(), folder, name):
                    yield f"{device} {scheme} {name}: {fault}"
                if pictures:
                    picture = f"{'_'.join(name.with_suffix('').parts)}-{device}-{scheme}.png"
                    context.pages[-1].screenshot(path=pictures / picture, full_page=True)
                context.pages[-1].close()
            context.close()


def faults_of_page(page: Any, folder: Path, name: Path) -> Iterator[str]:
    """What is wrong with one page, which stays open."""
    said: list[str] = []
    files: set[Path] = set()

    def note_request(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme == "file":
            files.add(Path(unquote(parts.path)))
        elif parts.scheme not in ("data", "blob"):
            said.append(f"asks for {request.url}")

    page.on("request", note_request)
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / name).as_uri())
    page.wait_for_timeout(100)
    yield from said
    yield from (f"sticks out: {part}" for part in page.evaluate(STICKS_OUT))
    yield from (f"low contrast: {part}" for part in page.evaluate(PALE))
    weight = sum(file.stat().st_size for file in files if file.is_file())
    if weight >= MAX_WEIGHT:
        yield f"weighs {weight:,} bytes"


def main(site: str, pictures: str | None = None) -> int:
    """Print the faults of a site; 1 if there are any."""
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        folder = Path(site).resolve()
        found = list(faults(browser, folder, Path(pictures) if pictures else None))
        browser.close()
    print(*found, f"{len(found)} faults", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
