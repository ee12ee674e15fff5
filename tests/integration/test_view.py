"""The local web application over a real server: a browser walks through all pages."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medrec.config import TrainConfig
from medrec.runs import Home
from medrec.training import run_training
from orchestration.features import cohort_species
from quantum.export import export_features
from quantum.pipeline import Task, compute_features
from quantum.schema import CalculationSpec, GridSpec, PipelineSpec
from quantum.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.6, margin_bohr=3.5),
)
COMMAND = "import typer; from orchestration.cli_view import view; typer.run(view)"


@contextmanager
def server(home: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`medrec view` as a process; gives the address that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--home", str(home), "--no-browser", "--port", "18765"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Browser:
    """A headless browser over its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers = socket, itertools.count(1)
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command; notes console errors that come in the meantime."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"])[:500])
        if kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(str(params["entry"])[:500])
        if kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(str(params["args"])[:500])

    async def run(self, script: str) -> Any:
        """Value of an expression in the page; promises are awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str, seconds: float = 90) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not await self.run(f"Boolean({condition})"):
            text = await self.run("document.body?.innerText.slice(0, 1500)")
            assert time.monotonic() < end, f"{condition} did not come true; page: {text}"
            await asyncio.sleep(0.1)

    async def open(self, route: str) -> None:
        """Go to a page of the application and wait for it."""
        await self.run(f"location.hash = {json.dumps('#' + route)}")
        path = json.dumps(route.partition("?")[0])
        await self.until(f"document.body.dataset.page === {path}")
        await self.until("!document.querySelector('.loading')")


async def with_browser(address: str, folder: Path, walk: Any) -> list[str]:
    """Start Chromium, open an address, walk; returns what the console complained about."""
    import aiohttp

    process = subprocess.Popen(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--window-size=1280,900",
            "about:blank",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        port = await _debugging_port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [item for item in await answer.json() if item["type"] == "page"]
            url = pages[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                browser = Browser(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await browser.call(f"{domain}.enable")
                await browser.call("Page.navigate", url=address)
                await browser.until("document.body?.dataset.page")
                await walk(browser)
                error = await browser.run("document.body.dataset.error || ''")
                return browser.problems + ([error] if error else [])
    finally:
        process.kill()
        process.wait()


async def _debugging_port(file: Path) -> str:
    for _ in range(600):
        if file.exists() and file.read_text().strip():
            return file.read_text().splitlines()[0]
        await asyncio.sleep(0.1)
    raise AssertionError("the browser did not start")


@pytest.fixture(scope="module")
def home(synthetic, tmp_path_factory) -> Path:
    """Home with two runs on the synthetic cohort, and one molecule with an ELF map."""
    made = Home(tmp_path_factory.mktemp("view"))
    made.cohorts.symlink_to(synthetic[0].cohorts)
    cohort = synthetic[1]
    store = Store(made.store)
    species = sorted(cohort_species([cohort]), key=lambda s: s.n_atoms)[:3]
    compute_features(Task(species=species[0], spec=SPEC), store)
    for item in species[1:]:
        compute_features(Task(species=item, spec=SPEC, stages=("conformer",)), store)
    export_features(species, SPEC, store, made.features, "t")
    for config in (
        {"name": "topk", "model": {"name": "topk"}},
        {"name": "retain", "model": {"name": "retain", "d_model": 8}, "optim": {"epochs": 3}},
    ):
        run_training(TrainConfig.model_validate(config), cohort, made)
    return made.root


async def walk_all(browser: Browser) -> None:
    """Runs, a run, the comparison, a molecule, a recommendation for the example."""
    assert await browser.run("location.search") == ""  # the token is out of the address bar
    assert "Research use only" in await browser.run("document.querySelector('.banner').innerText")
    await browser.until("document.querySelectorAll('tbody tr').length === 2")
    name = await browser.run(
        "[...document.querySelectorAll('td a')].find((a) => a.text.startsWith('retain')).text"
    )
    await browser.open(f"/runs/{name}")
    await browser.until("document.querySelector('.figure[data-drawn] .scatterlayer .js-line')")
    assert "d_model: 8" in await browser.run("document.querySelector('pre').innerText")
    await browser.until("/jaccard/.test(document.querySelector('tbody').innerText)")
    await browser.open("/compare")
    await browser.until("document.querySelector('.figure[data-drawn] .scatterlayer .point')")
    assert "support no claim" in await browser.run("document.querySelector('.caution').innerText")
    await browser.open("/molecules?only=map")
    await browser.until("document.querySelectorAll('.card').length === 1")
    key = await browser.run("document.querySelector('.card').hash.split('/').pop()")
    await browser.open(f"/molecules/{key}")
    await browser.until("document.querySelector('.plate img').naturalWidth > 0")
    await browser.until("document.querySelector('.figure[data-drawn] canvas')")
    await browser.until("document.querySelector('iframe[data-shown]')")
    await browser.open("/recommend")
    await browser.run("document.getElementById('example').click()")
    await browser.until("document.querySelectorAll('.codes li.unknown').length > 0")
    await browser.run("document.getElementById('go').click()")
    await browser.until("document.querySelectorAll('tr.chosen').length > 0")
    assert "is unknown" in await browser.run("document.querySelector('.warnings').innerText")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
def test_a_browser_walks_through_all_pages(home: Path, tmp_path: Path):
    pytest.importorskip("aiohttp")
    with server(home) as (address, _):
        assert asyncio.run(with_browser(address, tmp_path, walk_all)) == []


def test_the_server_answers_here_only_and_ends_on_ctrl_c(tmp_path: Path):
    with server(tmp_path) as (address, process):
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})", address)
        assert found, address
        with urllib.request.urlopen(address) as answer:
            assert b"Research use only" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.partition("?")[0])
        assert listening_addresses(process.pid, int(found.group(1))) == {"0100007F"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def listening_addresses(pid: int, port: int) -> set[str]:
    """Local addresses (hexadecimal) that listen on a port, from the kernel's table."""
    if not os.path.exists("/proc/net/tcp"):
        pytest.skip("no /proc/net/tcp")
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}


def test_a_taken_port_is_left_alone(tmp_path: Path):
    with server(tmp_path) as (first, _), server(tmp_path) as (second, _):
        ports = [int(re.search(r":(\d+)/", address).group(1)) for address in (first, second)]
        assert ports[1] > ports[0]
