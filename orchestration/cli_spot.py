"""`medrec spot-watch`: leave a spot machine before the cloud takes it."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from orchestration.console import Terminal

spot_app = typer.Typer(help="Preempted machines.")


class Cloud(StrEnum):
    """Whose notices are read."""

    AUTO = "auto"
    AWS = "aws"
    GCP = "gcp"
    AZURE = "azure"


class Rebalance(StrEnum):
    """What to do on advice that is no notice yet."""

    LOG = "log"
    DRAIN = "drain"


@spot_app.command("spot-watch")
def spot_watch(
    cloud: Annotated[Cloud, typer.Option(help="Whose notices; auto asks who answers.")] = (
        Cloud.AUTO
    ),
    lead: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds before the machine goes at which Ray gets SIGTERM. "
            "Default: its own drain time and 10 s.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between polls.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Poll once; act if there is a notice.")] = (
        False
    ),
    rebalance: Annotated[
        Rebalance, typer.Option(help="On AWS's rebalance recommendation: only say so, or drain.")
    ] = Rebalance.LOG,
    node_id: Annotated[
        str | None, typer.Option(help="Ray's node id, if several nodes run on this machine.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="Loopback address of a metadata service, for tests.")
    ] = None,
) -> None:
    """Watch the cloud's notices of preemption; drain and stop this machine's Ray in time.

    Tasks that run here then move to other machines, and none of their retries is charged. Start
    it on every spot machine, as the user that runs `ray start --block`. One line per step goes to
    standard error.
    """
    from orchestration.spot_node import find_ray_node
    from orchestration.spot_notices import CLOUDS, Metadata
    from orchestration.spot_watch import SpotWatch

    terminal = Terminal()

    def say(text: str) -> None:
        terminal.say(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} spot-watch: {text}")

    watch = SpotWatch(
        CLOUDS[cloud.value](Metadata(metadata)),
        find=partial(find_ray_node, node_id),
        say=say,
        lead=lead,
        interval=interval,
        drain_on_advice=rebalance is Rebalance.DRAIN,
    )
    if not watch.run(once=once):
        say("no notice")
