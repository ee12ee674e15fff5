"""Pages made from files at the top of the checkout, and notices of data inside the data cards."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_NOTICE = re.compile(r"<!-- notice: ([a-z0-9-]+) -->")
_HEADING = re.compile(r"^(#+) ", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


def read(path: Path) -> str:
    """Text of a file of the checkout.

    Raises
    ------
    PluginError
        If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"{path.name} cannot be read: {error}") from error


def moved(text: str, levels: int = 0) -> str:
    """Markdown for another place: headings deeper by some levels, links to pages put right.

    Links to ``docs/NAME.md`` begin one folder above the page; other local links become text.
    """

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        if target.startswith("docs/"):
            return f"[{words}](../{target.removeprefix('docs/')})"
        return words

    return _LINK.sub(link, _HEADING.sub(lambda m: "#" * levels + m[0], text))


def citation(text: str) -> str:
    """Markdown of the page about citing, from CITATION.cff.

    Raises
    ------
    PluginError
        If the file is no YAML mapping with the keys that the format requires.
    """
    try:
        data: dict[str, Any] = yaml.safe_load(text)
        authors = " and ".join(_author(item) for item in data["authors"])
        title, version, message = data["title"], data["version"], data["message"]
        year = str(data["date-released"])[:4] if "date-released" in data else ""
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise PluginError(f"CITATION.cff: {error}") from error
    fields = {
        "author": "{" + authors + "}",
        "title": "{" + title + "}",
        "version": f"{{{version}}}",
    }
    fields |= {"year": f"{{{year}}}"} if year else {}
    lines = [f"  {name} = {value}," for name, value in fields.items()]
    bibtex = "\n".join(["@software{medrec,", *lines, "}"])
    references = "\n".join(f"- {_reference(item)}" for item in data.get("references", []))
    return (
        f"# Cite\n\n{message}\n\n```bibtex\n{bibtex}\n```\n\n## Papers\n\n{references}\n\n"
        f"## CITATION.cff\n\n```yaml\n{text.strip()}\n```\n"
    )


def _author(item: dict[str, str]) -> str:
    return item.get("name") or f"{item['family-names']}, {item.get('given-names', '')}".strip(", ")


def _reference(item: dict[str, Any]) -> str:
    authors = ", ".join(_author(author).replace(",", "") for author in item["authors"])
    place = ", ".join(
        str(item[key]) for key in ("journal", "collection-title", "volume", "year") if key in item
    )
    text = f"{authors}. *{item['title']}*. {place}."
    return escape(text + (f" doi:{item['doi']}" if "doi" in item else ""), quote=False)


def licence(text: str) -> str:
    """Markdown of the page about licences."""
    return (
        "# Licence\n\nThe code and this documentation are under the Apache License 2.0. "
        "**Data keep their own licences**, which are stated in the "
        "[data cards](../cards/data/index.md) and in `data/*/NOTICE.md`; the licence of the code "
        "does not extend to them, nor theirs to the code. "
        "MIMIC and eICU in full are not here, and fall under your own data use agreement: "
        "[ethics](../cards/ethics.md).\n\n"
        f"## Apache License 2.0\n\n```text\n{text.rstrip()}\n```\n"
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the build."""
    root = Path(config.config_file_path).parent
    pages = {
        "project/changelog.md": moved(read(root / "CHANGELOG.md")),
        "project/contributing.md": moved(read(root / "CONTRIBUTING.md")),
        "project/licence.md": licence(read(root / "LICENSE")),
        "project/citation.md": citation(read(root / "CITATION.cff")),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the notice of a folder of data in the place of ``<!-- notice: FOLDER -->``."""
    data = Path(config.config_file_path).parent / "data"
    return _NOTICE.sub(lambda match: moved(read(data / match[1] / "NOTICE.md"), 2), markdown)
