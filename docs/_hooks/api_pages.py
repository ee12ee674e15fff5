"""API pages: one page per sub-package, made from docstrings, and one page of source per module.

The pages exist during the build alone. `medrec.config*` is left out: its classes stand in the
configuration reference.
"""

from __future__ import annotations

import ast
import html
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

PACKAGES = ("quantum", "medrec", "orchestration")
_CONFIGURATIONS = "medrec.config"
_LEFT_OUT = ("__main__", "assets")
_SOURCE_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{path}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="../../assets/source.css"></head>
<body><header><a href="../{page}">{module}</a> <code>{path}</code></header>
{body}</body></html>
"""


def modules(root: Path) -> dict[str, list[str]]:
    """Modules of every sub-package, by the sub-package's name; those of configurations left out."""
    found = all_modules(root)
    return {
        page: [name for name in names if not name.startswith(_CONFIGURATIONS)]
        for page, names in found.items()
    }


def all_modules(root: Path) -> dict[str, list[str]]:
    """Modules of every sub-package, by the sub-package's name.

    Parameters
    ----------
    root : Path
        Folder of the checkout.

    Returns
    -------
    dict of str to list of str
        Dotted names, in the order of the alphabet, the package itself first.
    """
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            if any(part in _LEFT_OUT for part in parts):
                continue
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            page = name if is_package else name.rpartition(".")[0]
            found.setdefault(page, []).append(name)
    return {page: sorted(names) for page, names in sorted(found.items())}


def file_of(root: Path, module: str) -> Path:
    """File of a module or package."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def summary(path: Path) -> str:
    """First line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def api_page(root: Path, page: str, names: list[str]) -> str:
    """Markdown of one sub-package's page."""
    lines = [f"# {page}", "", summary(file_of(root, page)), ""]
    lines += ['<div class="modules" markdown>', "", "| module | content |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {summary(file_of(root, name))} |" for name in names]
    lines += ["", "</div>", ""]
    for name in names:
        lines += [f"::: {name}", ""]
    return "\n".join(lines)


def overview(root: Path, pages: dict[str, list[str]]) -> str:
    """Markdown of the list of sub-packages."""
    lines = [
        "# API",
        "",
        "From the docstrings of the code. Names that begin with an underscore are private and not",
        "shown. Letters for shapes are explained in the [glossary](../glossary.md); the classes of",
        "configurations stand in the [configuration reference](../configuration.md).",
        "",
        "| package | content | modules |",
        "|---|---|---|",
    ]
    for page, names in pages.items():
        lines.append(f"| [`{page}`]({page}.md) | {summary(file_of(root, page))} | {len(names)} |")
    return "\n".join(lines) + "\n"


def source_page(root: Path, page: str, module: str) -> str:
    """HTML page with the source of a module; line n has the anchor ``L-n``."""
    path = file_of(root, module)
    formatter = HtmlFormatter(
        lineanchors="L", linespans="", linenos="inline", anchorlinenos=True, cssclass="source"
    )
    body = highlight(path.read_text(encoding="utf-8"), PythonLexer(), formatter)
    relative = path.relative_to(root).as_posix()
    described = f"api/{page}.html#{module}"
    if module.startswith(_CONFIGURATIONS):
        described = "configuration.html"
    return _SOURCE_PAGE.format(
        page=described, module=html.escape(module), path=html.escape(relative), body=body
    )


def add_to_navigation(items: list[Any], pages: list[str]) -> bool:
    """Put the pages into the section "API" of a navigation; tell whether there is one."""
    for item in items:
        for title, children in item.items() if isinstance(item, dict) else ():
            if title == "API":
                children += [{page: f"reference/api/{page}.md"} for page in pages]
                return True
            if isinstance(children, list) and add_to_navigation(children, pages):
                return True
    return False


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every sub-package in the navigation.

    Raises
    ------
    PluginError
        If the navigation has no section for them.
    """
    root = Path(config.config_file_path).parent
    if not add_to_navigation(config.nav or [], list(modules(root))):
        raise PluginError("mkdocs.yml: nav has no section 'API'")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the build."""
    root = Path(config.config_file_path).parent
    pages = modules(root)
    made = {"reference/api/index.md": overview(root, pages)}
    for page, names in pages.items():
        made[f"reference/api/{page}.md"] = api_page(root, page, names)
    for page, names in all_modules(root).items():
        made |= {f"reference/source/{n}.html": source_page(root, page, n) for n in names}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files
