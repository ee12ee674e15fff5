"""Groups of commands: loaded on use, with the nearest name for a misspelt one."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from orchestration.cli_index import COMMANDS, Entry

_MARKUP: Literal["markdown"] = "markdown"


class Group(TyperGroup):
    """Group that names the nearest command for a misspelt one."""

    def get_help_option(self, ctx: Any) -> Any:
        """``--help`` with a default of its type: typer loads pydantic to convert any other."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Return name, command and the arguments left.

        Raises
        ------
        UsageError
            If there is no such command; exit code 2.
        """
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(unknown(f"no command '{name}'", name, known))
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """Top group: knows all commands of `COMMANDS`, imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the overview."""
        return [*COMMANDS, *(name for name in self.commands if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Command that was loaded or added, or a stand-in with its help line alone."""
        if cmd_name in self.commands or cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        entry = COMMANDS[cmd_name]
        return TyperCommand(
            cmd_name,
            help=entry.help,
            short_help=entry.help,
            rich_help_panel=entry.panel,
            rich_markup_mode=_MARKUP,
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Import the command that is called, and those below it."""
        if args[0] in COMMANDS and args[0] not in self.commands:
            self.commands[args[0]] = load(COMMANDS[args[0]])
        return super().resolve_command(ctx, args)


def load(entry: Entry) -> Any:
    """Import a command and build it as typer does for a program with several commands."""
    module, _, attribute = entry.target.partition(":")
    target = getattr(import_module(f"orchestration.{module}"), attribute)
    parent = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=_MARKUP
    )
    parent.callback()(_nothing)
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=entry.name, cls=Group)
    else:
        parent.command(entry.name)(target)
    group = get_command(parent)
    assert isinstance(group, TyperGroup), "it has a callback"
    return group.commands[entry.name]


def _nothing() -> None:
    """Make the parent a group."""


def unknown(what: str, word: str, known: list[str]) -> str:
    """``what``; the nearest of the known words, or all of them."""
    close = get_close_matches(word, known, n=1)
    if close:
        return f"{what}; did you mean '{close[0]}'?"
    return f"{what}; expected one of: {', '.join(known)}"
