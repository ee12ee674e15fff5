"""Command-line reference, made from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_TOP = """# Command line

Made from the commands' own definitions. `medrec COMMAND --help` prints the same. What a command
computes goes below `--home` (`MEDREC_HOME`); `--set key.path=value` overrides one value of its
[configuration](configuration.md).

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | bad input or configuration |
| 3 | a program is missing |
| 4 | a resource limit, or no convergence |
| 5 | a passing fault; the same command may succeed later |
| 6 | a damaged store |
| 70 | a defect in medrec |
| 130 | interrupted; the same command goes on |

"""


def cell(text: object) -> str:
    """Text for one cell of a Markdown table; no markup of it takes effect, code spans excepted."""
    pieces = str(text).replace("\n", " ").split("`")
    for number, piece in enumerate(pieces):
        pieces[number] = piece.replace("|", "\\|")
        if number % 2 == 0:
            for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("*", "\\*")):
                pieces[number] = pieces[number].replace(mark, written)
    return "`".join(pieces)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it; groups are passed through."""
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    context = typer.Context(command, info_name=path)
    for name in command.list_commands(context):
        # resolving loads what a lazy group has only announced
        _, child, _ = command.resolve_command(context, [name])
        yield from walk(child, f"{path} {name}")


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`" + (" ..." if parameter.nargs == -1 else "")
    return ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if callable(value) or isinstance(value, bool) or value in (None, (), []):
        return ""
    return f"`{value}`"


def _row(parameter: Any, context: Any) -> str:
    is_flag = getattr(parameter, "is_flag", False)
    kind = "" if is_flag else cell(str(parameter.display_type(context)).strip("<>"))
    text = cell(parameter.help or "")
    if parameter.envvar:
        text += f" Variable: `{parameter.envvar}`."
    return f"| {_name(parameter)} | {kind} | {cell(_default(parameter))} | {text} |"


def section(path: str, command: Any) -> str:
    """Markdown of one command: what it does, and a row per argument and option."""
    parameters = [item for item in command.params if not getattr(item, "hidden", False)]
    lines = [f"## {path}", "", cell_lines(command.help or ""), ""]
    if parameters:
        lines += ["| argument or option | type | default | meaning |", "|---|---|---|---|"]
        context = typer.Context(command, info_name=path)
        lines += [_row(item, context) for item in parameters]
    return "\n".join(lines) + "\n"


def cell_lines(text: str) -> str:
    """Help text as paragraphs; ``<`` and ``>`` as themselves."""
    return inspect.cleandoc(text).replace("<", "&lt;").replace(">", "&gt;")


def reference() -> str:
    """Markdown of the whole command line."""
    from orchestration.cli import app

    commands = dict(walk(typer.main.get_command(app), "medrec"))
    return _TOP + "\n".join(section(path, command) for path, command in commands.items())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the build."""
    files.append(File.generated(config, "reference/commands.md", content=reference()))
    return files
