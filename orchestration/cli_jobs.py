"""`medrec jobs`: submit, list, status, logs, stop."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from orchestration.jobs import Job, JobServer

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
API_VARIABLE = "RAY_API_SERVER_ADDRESS"
STOP_WAIT_S = 30
jobs_app = typer.Typer(help="Commands as jobs of a Ray cluster.", no_args_is_help=True)
AddressOption = Annotated[
    str, typer.Option("--address", envvar=API_VARIABLE, help="Job server: Ray's dashboard.")
]
JobArgument = Annotated[str, typer.Argument(help="Job, or its name without the attempt's number.")]
_STOP_MARGIN_S = 30


@jobs_app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[
        list[str], typer.Argument(help="After --: a medrec command and its arguments.")
    ],
    address: AddressOption = DEFAULT_ADDRESS,
    name: Annotated[
        str | None, typer.Option(help="Job's name; by default from command and configuration.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the log and take over the exit code.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Run it once more although it has succeeded.")
    ] = False,
    home: Annotated[
        Path | None, typer.Option(help="MEDREC_HOME on the cluster: a folder all nodes share.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="KEY=VALUE for the job, or KEY to take it from here."),
    ] = None,
    cpus: Annotated[
        float, typer.Option(min=0, help="Cores for the command itself, beside its tasks'.")
    ] = 0,
    resources: Annotated[
        list[str] | None,
        typer.Option("--resources", help="NAME=AMOUNT; by default driver=1 where there is one."),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Folder to upload: code and configurations.")
    ] = Path(),
    install: Annotated[
        bool, typer.Option("--install", help="Install the pins of requirements.lock for this job.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a medrec command on the cluster: medrec jobs submit -- features run configs/x.yaml.

    The same command under the same name runs once; after a failure or a stop, submitting it again
    is the next attempt and goes on from what is in the home folder.
    """
    from orchestration.job_request import (
        Request,
        Upload,
        check_arguments,
        command_name,
        mib,
        read_pins,
    )
    from quantum.base import InputError

    terminal = Terminal(as_json=as_json, quiet=quiet)
    arguments = tuple(command[1:] if command[0] == "medrec" else command)
    if not arguments:
        raise InputError("no command to run; expected one after --, such as -- features run FILE")
    folder = working_dir
    own_home = os.environ.get("MEDREC_HOME")
    upload = Upload.of(folder, [Path(own_home)] if own_home else [])
    check_arguments(arguments, upload)
    request = Request(
        name=name or command_name(arguments, folder),
        arguments=arguments,
        env=_environment(env or (), home),
        cpus=cpus,
        resources=None if resources is None else _amounts(resources),
        pip=read_pins(folder / "requirements.lock") if install else (),
    )
    server = _connect(address, terminal)
    terminal.say(f"upload: {len(upload.files)} files, {mib(upload.n_bytes)}: {upload.largest()}")
    with tempfile.TemporaryDirectory() as scratch:
        packed = upload.pack(Path(scratch) / "medrec.zip")
        job, is_new = server.submit(request, packed, again=again)
    _say_submitted(job, is_new, terminal)
    if wait:
        _follow(server, job, terminal)
        job = server.wait(job.id)
    terminal.result({**_document(job), "submitted": is_new}, _details(job))
    if wait and job.command_exit_code:
        raise typer.Exit(job.command_exit_code)


@jobs_app.command("list")
def list_jobs(
    address: AddressOption = DEFAULT_ADDRESS,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the jobs that the cluster knows, the newest first."""
    import pandas as pd

    terminal = Terminal(as_json=as_json, quiet=quiet)
    jobs = _connect(address, terminal).jobs()
    rows = [
        {
            "job": job.id,
            "status": job.status,
            "start (UTC)": _clock(job),
            "duration": duration(job.seconds),
            "command": job.command,
        }
        for job in jobs
    ]
    table = frame_table(pd.DataFrame(rows), whole=4)  # ids are there to be copied
    shown = table if rows else f"no jobs at {address}"
    terminal.result([_document(job) for job in jobs], shown)


@jobs_app.command()
def status(
    job: JobArgument,
    address: AddressOption = DEFAULT_ADDRESS,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one job: status, times, command, exit code, first line of what went wrong."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    found = _connect(address, terminal).find(job)
    terminal.result(_document(found), _details(found))


@jobs_app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Print what a job has written."""
    terminal = Terminal()
    server = _connect(address, terminal)
    found = server.find(job)
    if follow:
        _follow(server, found, terminal)
    else:
        _write(terminal, server.logs(found.id))


@jobs_app.command()
def stop(
    job: JobArgument,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for the end.")
    ] = STOP_WAIT_S + _STOP_MARGIN_S,
    address: AddressOption = DEFAULT_ADDRESS,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stop a job and wait for its end.

    The command gets SIGTERM: it submits nothing more, its running tasks are cancelled, finished
    work stays. What has not ended 30 s later (RAY_JOB_STOP_WAIT_TIME_S) is killed.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    server = _connect(address, terminal)
    found = server.find(job)
    if found.has_ended:
        terminal.say(f"{found.id} had ended before")
    else:
        terminal.say(f"stopping {found.id}; killed if it does not end in its stop time")
        found = server.stop(found.id, timeout)
    terminal.result(_document(found), _details(found))


def connect(address: str) -> JobServer:
    """Connect to a job server."""
    from orchestration import jobs

    return jobs.connect(address)


def _connect(address: str, terminal: Terminal) -> JobServer:
    from orchestration.jobs import check_address, is_exposed

    full = check_address(address)
    if is_exposed(full):
        terminal.warn(
            f"{full} is not on this machine: token, files and variables travel in clear; "
            "use a tunnel (ray dashboard cluster.yaml) or https"
        )
    return connect(full)


def _environment(pairs: Sequence[str], home: Path | None) -> dict[str, str]:
    """Variables of a job; messages name them and never say their values."""
    from orchestration.job_request import STOP_WAIT_VARIABLE
    from quantum.base import InputError

    found = {}
    for pair in pairs:
        key, has_value, value = pair.partition("=")
        if not key.isidentifier():
            raise InputError(f"--env with the name {key!r}; expected KEY=VALUE or KEY")
        if not has_value:
            if key not in os.environ:
                raise InputError(f"--env {key}: there is no such variable here; use {key}=VALUE")
            value = os.environ[key]
        found[key] = value
    if STOP_WAIT_VARIABLE in found and not found[STOP_WAIT_VARIABLE].isdigit():
        raise InputError(f"{STOP_WAIT_VARIABLE} takes whole seconds")
    if home is not None:
        if not home.is_absolute():
            raise InputError(f"--home {home}: expected an absolute path on the cluster's nodes")
        found["MEDREC_HOME"] = str(home)
    return found


def _amounts(pairs: Sequence[str]) -> dict[str, float]:
    from quantum.base import InputError

    found = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            found[key] = float(text)
        except ValueError:
            found[key] = -1.0
        if not key or not 0 < found[key] < float("inf"):
            raise InputError(f"--resources {pair!r}; expected NAME=AMOUNT, such as driver=1")
    return found


def _say_submitted(job: Job, is_new: bool, terminal: Terminal) -> None:
    if is_new:
        terminal.say(f"submitted as {job.id}; log: medrec jobs logs {job.id} --follow")
    elif job.has_ended:
        terminal.say(f"{job.id} has {job.status} already and was not run again; --again does it")
    else:
        terminal.say(f"{job.id} is {job.status}; not submitted a second time")


def _follow(server: JobServer, job: Job, terminal: Terminal) -> None:
    try:
        server.follow(job.id, lambda text: _write(terminal, text))
    except KeyboardInterrupt:
        terminal.say(f"{job.id} goes on; medrec jobs stop {job.id} ends it")
        raise


def _write(terminal: Terminal, text: str) -> None:
    """Pass on a log as it is; with --json it goes to standard error."""
    console = terminal.err if terminal.as_json else terminal.out
    console.out(text, end="", highlight=False)


def _clock(job: Job) -> str:
    return job.start.strftime("%Y-%m-%d %H:%M:%S") if job.start else "-"


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 5 h 07 min."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _document(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "status": job.status,
        "command": job.command,
        "start": job.start.isoformat() if job.start else None,
        "end": job.end.isoformat() if job.end else None,
        "seconds": job.seconds,
        "exit_code": job.exit_code,
        "message": job.message,
    }


def _details(job: Job) -> Any:
    pairs = [
        ("job", job.id),
        ("status", job.status),
        ("command", job.command),
        ("start (UTC)", _clock(job)),
        ("duration", duration(job.seconds)),
    ]
    if job.exit_code is not None:
        pairs.append(("exit code", str(job.exit_code)))
    if job.message and job.status != "SUCCEEDED":
        pairs.append(("message", job.message))
    return pairs_table(pairs)
