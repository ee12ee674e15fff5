"""The built site loads nothing from elsewhere, and its own links have targets.

MkDocs checks links in Markdown. Links inside generated HTML, such as those from a function to its
source, are checked here.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADED = {"script", "img", "iframe", "source", "video", "audio", "embed", "input", "track"}
_LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch"}
_LOADED_LINKS |= {"manifest", "modulepreload", "shortcut"}
_ELSEWHERE = re.compile(r"(?:https?:)?//[^\s)\"']+")
_IN_STYLE = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\s)\"';]+)")


class _Reader(HTMLParser):
    """What a page loads from elsewhere, what it links to, and its own anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        loaded = [values[n] for n in ("src", "srcset", "poster", "data") if values.get(n)]
        if tag not in _LOADED | {"object"}:
            loaded = []
        if tag == "link" and set(values.get("rel", "").split()) & _LOADED_LINKS:
            loaded.append(values.get("href", ""))
        if tag in {"image", "use"}:
            loaded += [values.get("href", ""), values.get("xlink:href", "")]
        self.loads += [hit for text in loaded for hit in _ELSEWHERE.findall(text)]
        self.loads += _IN_STYLE.findall(values.get("style", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loads += _IN_STYLE.findall(data)


def loads_from_elsewhere(page: str) -> list[str]:
    """Addresses on other hosts that a browser would load with a page; plain links do not count."""
    reader = _Reader()
    reader.feed(page)
    return reader.loads


def problems(site: Path) -> list[str]:
    """What is wrong with a built site, one line each."""
    pages: dict[Path, _Reader] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = _Reader()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = [
        f"{path.relative_to(site)}: loads {address}"
        for path, reader in pages.items()
        for address in reader.loads
    ]
    for style in sorted(site.rglob("*.css")):
        hits = _IN_STYLE.findall(style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: loads {address}" for address in hits]
    for path, reader in pages.items():
        if path.name != "404.html":
            found += [
                f"{path.relative_to(site)}: link to {link}, which is not there"
                for link in dict.fromkeys(reader.links)
                if not _has_target(path, link, pages)
            ]
    return found


def _has_target(page: Path, link: str, pages: dict[Path, _Reader]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target = target / "index.html"
    if target not in pages:
        return target.is_file()
    anchor = unquote(parts.fragment)
    return not anchor or anchor.startswith("__") or anchor in pages[target].anchors


def on_post_build(config: MkDocsConfig) -> None:
    """End the build if the site is not whole."""
    found = problems(Path(config.site_dir).resolve())
    if found:
        raise PluginError("\n".join([f"{len(found)} problems in the built site:", *found[:40]]))
