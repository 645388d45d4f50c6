"""Faults of a built site: `python tests/docs/check_site.py site`.

Links and their anchors, headings, pictures without a text, formulas that KaTeX rejected, pages
that are too heavy, whatever a page would load from a network, and names of the API that are not
described. `tests/docs/browse.py` looks at the same site with a browser.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAX_WEIGHT = 1_500_000
"""Bytes of a page with what it loads: without the fonts that a style sheet only offers."""

LOADS = {
    **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src"),
    "object": "data",
}
RELATIONS = ("stylesheet", "preload", "prefetch", "icon", "preconnect", "dns-prefetch", "manifest")
API = Path(__file__).parents[2] / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. (currentmodule|auto\w+):: (\S+)\n(   :members:)?", re.MULTILINE)
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")


class Page(HTMLParser):
    """What a page says of itself: its ids, links, headings, pictures and resources."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.headings: list[int] = []
        self.unnamed: list[str] = []  # pictures and frames that say nothing to who cannot see
        self.rejected = 0  # formulas
        self.language = ""
        self.title = False
        self._style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """HTMLParser calls this."""
        a = {name: value or "" for name, value in attrs}
        self.ids.update(x for x in (a.get("id"), a.get("name") if tag == "a" else None) if x)
        self.language = a.get("lang", "") if tag == "html" else self.language
        self.title |= tag == "title"
        self._style = tag == "style"
        self.rejected += "katex-error" in a.get("class", "").split()
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in LOADS and a.get(LOADS[tag]):
            self.resources.append(a[LOADS[tag]])
        if tag == "link" and a.get("rel", "").split()[0] in RELATIONS:
            self.resources.append(a["href"])
        self.resources += CSS_URL.findall(a.get("style", ""))
        self._check_name(tag, a)

    def _check_name(self, tag: str, a: dict[str, str]) -> None:
        if (tag == "img" and not a.get("alt", "").strip()) or (
            tag == "iframe" and not a.get("title", "").strip()
        ):
            self.unnamed.append(f"{tag} {a.get('src', '')[:60]}")
        if a.get("role") == "img" and a.get("aria-hidden") != "true":
            label = a.get("aria-label") or a.get("aria-labelledby") or a.get("alt")
            if not label:
                self.unnamed.append(f"{tag} role=img")

    def handle_data(self, data: str) -> None:
        """HTMLParser calls this."""
        if self._style:
            self.resources += CSS_URL.findall(data)

    def handle_endtag(self, tag: str) -> None:
        """HTMLParser calls this."""
        self._style = self._style and tag != "style"


class Site:
    """The pages of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.pages = {path: Page(path) for path in self._paths()}

    def _paths(self) -> list[Path]:
        paths = [path.relative_to(self.folder) for path in sorted(self.folder.rglob("*.html"))]
        return [self.folder / path for path in paths if path.parts[0] != "_static"]

    def faults(self) -> Iterator[str]:
        """What is wrong, one line each."""
        if not self.pages:
            yield f"{self.folder}: no pages"
        for path, page in self.pages.items():
            where = path.relative_to(self.folder)
            for check in (self._links, self._headings, self._names, self._loads):
                yield from (f"{where}: {fault}" for fault in check(page))

    def missing(self, api: Path = API) -> Iterator[str]:
        """What the sources in ``api`` ask autodoc for, and no page describes, one line each.

        Sphinx leaves a section empty when its module cannot be imported.
        """
        ids = {name for page in self.pages.values() for name in page.ids}
        for path in sorted(api.glob("*.rst")):
            module = ""
            for directive, name, members in DIRECTIVE.findall(path.read_text(encoding="utf-8")):
                if directive in ("currentmodule", "automodule"):
                    module = name
                    if members and not any(i.startswith(f"{module}.") for i in ids):
                        yield f"{path.name}: nothing of {module} is described"
                elif f"{module}.{name}" not in ids:
                    yield f"{path.name}: {module}.{name} is not described"

    def _links(self, page: Page) -> Iterator[str]:
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = self._file(page.path, parts.path) if parts.path else page.path
            if target is None:
                yield f"{link} leads to no file"
            elif parts.fragment and unquote(parts.fragment) not in self._ids(target):
                yield f"{link} leads to no place in its page"

    def _ids(self, target: Path) -> set[str]:
        return self.pages[target].ids if target in self.pages else set()

    def _headings(self, page: Page) -> Iterator[str]:
        if page.headings.count(1) != 1:
            yield f"{page.headings.count(1)} headings of level 1"
        for a, b in zip(page.headings, page.headings[1:], strict=False):
            if b > a + 1:
                yield f"a heading of level {b} follows one of level {a}"

    def _names(self, page: Page) -> Iterator[str]:
        yield from (f"{thing} has no text" for thing in page.unnamed)
        if page.rejected:
            yield f"KaTeX rejected {page.rejected} formulas"
        if not page.language:
            yield "html has no lang"
        if not page.title:
            yield "no title"

    def _loads(self, page: Page) -> Iterator[str]:
        loaded, waiting = {page.path}, [(page.path, url) for url in page.resources]
        while waiting:
            base, url = waiting.pop()
            parts = urlsplit(url)
            if parts.scheme == "data" or not (parts.path or parts.netloc):
                continue
            if parts.scheme or parts.netloc:
                yield f"loads {url} from a network"
                continue
            file = self._file(base, parts.path)
            if file is None:
                yield f"loads {url}, which is no file"
            elif file not in loaded:
                loaded.add(file)
                if file.suffix == ".css":
                    found = CSS_URL.findall(file.read_text(encoding="utf-8"))
                    waiting += [(file, u) for u in found]
        weight = sum(file.stat().st_size for file in loaded if file.suffix != ".woff2")
        if weight >= MAX_WEIGHT:
            yield f"weighs {weight:,} bytes"

    def _file(self, base: Path, link: str) -> Path | None:
        path = (base.parent / unquote(link)).resolve()
        path = path / "index.html" if path.is_dir() else path
        return path if path.is_file() and path.is_relative_to(self.folder) else None


def main(folder: str) -> int:
    """Print the faults of a site; 1 if there are any."""
    site = Site(Path(folder))
    faults = [*site.faults(), *site.missing()]
    print(*faults, f"{len(site.pages)} pages, {len(faults)} faults", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
