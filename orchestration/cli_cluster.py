"""`medrec cluster check`: look at a cluster's description before anything costs money."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.console import Terminal, frame_table
from orchestration.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from orchestration.cluster_check import Report

cluster_app = typer.Typer(help="Clusters of machines for Ray.", no_args_is_help=True)


@cluster_app.callback()
def _group() -> None:
    """Clusters of machines for Ray."""


@cluster_app.command()
def check(
    files: Annotated[
        list[Path],
        typer.Argument(help="Launcher files (.yaml), KubeRay, Slurm scripts, systemd units."),
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check cluster files: Ray's schema, our rules, and whether each workload finds a machine.

    Nothing is started and no cloud is asked. Exit code 2 if there is a problem; a line for each.
    """
    from orchestration.cluster_check import check_cluster_file

    terminal = Terminal(as_json=as_json, quiet=quiet)
    reports = [check_cluster_file(path) for path in files]
    if as_json:
        terminal.result([vars(report) for report in reports])
    for report in reports:
        for problem in report.problems:
            terminal.err.print(
                f"{report.path}: {problem}", markup=False, soft_wrap=True, style="red"
            )
        if not report.problems and not as_json:
            _show(report, terminal)
    if any(report.problems for report in reports):
        raise typer.Exit(2)


def _show(report: Report, terminal: Terminal) -> None:
    import pandas as pd

    filled = f", {report.placeholders} REPLACE to fill in first" if report.placeholders else ""
    title = f"{report.path} ({report.kind}): fine{filled}"
    pools = pd.DataFrame(report.pools).dropna(axis="columns", how="all")
    terminal.result(
        {},
        title,
        frame_table(pools),
        "",
        frame_table(pd.DataFrame(report.workloads).drop(columns="what")),
        "",
    )
