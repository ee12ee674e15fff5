"""Twenty preemptions of real Ray nodes charge no retry and lose no task.

Nodes are `ray start --block` on this machine, the cloud is a fake metadata service, and
`medrec spot-watch` stands between them. Two tasks with one retry each run on nodes that are taken
away in turn, and replacements join. At last each task kills its own worker: that costs the one
retry there is, so only a task that was never charged comes back. Takes some minutes, most of
it the start of nodes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray_nodes import Aws, Machine, wait_for

N_TASKS = 2
DRIVER = """
import os, sys, time
from pathlib import Path
import ray

ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=1)
def work(log, over):
    with log.open("a") as lines:
        print(ray.get_runtime_context().get_node_id(), file=lines)
    while not over.exists():
        time.sleep(0.1)
    died = log.with_suffix(".died")
    if not died.exists():
        died.touch()
        os._exit(1)  # this one is charged, and the last there is
    return "uncharged"

folder = Path(sys.argv[2])
tasks = [work.remote(folder / f"task{i}", folder / "over") for i in range(int(sys.argv[3]))]
for task in tasks:
    try:
        print("result", ray.get(task), flush=True)
    except ray.exceptions.RayError as error:
        print("result", type(error).__name__, flush=True)
"""


class Run:
    """One cluster, its driver and its tasks."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.waited_s: list[float] = []
        machine.start_head()
        for number in range(N_TASKS):
            machine.start_node(f"first{number}")
        words = [machine.address, str(folder), str(N_TASKS)]
        self.driver = machine.start("driver", sys.executable, "-c", DRIVER, *words)
        wait_for(lambda: all(self.attempts(i) for i in range(N_TASKS)), 120, machine)

    def attempts(self, task: int) -> list[str]:
        """Nodes that a task was started on."""
        path = self.folder / f"task{task}"
        return path.read_text().split() if path.exists() else []

    def preempt(self, number: int) -> None:
        """Take the node of a task away; a replacement is there before."""
        machine, task = self.machine, number % N_TASKS
        before = self.attempts(task)
        cloud = Aws()
        try:
            machine.start_node(f"node{number}")
            watcher = machine.preempt(f"watch{number}", before[-1], cloud)
            cloud.interrupt(12)
            assert watcher.wait(timeout=120) == 0, machine.everything()
            start = time.monotonic()
            again = len(before) + 1
            wait_for(lambda: self.is_over() or len(self.attempts(task)) == again, 120, machine)
            self.waited_s.append(time.monotonic() - start)
        finally:
            cloud.close()
        print(f"preemption {number + 1}: node {before[-1][:12]} of task {task}", flush=True)

    def is_over(self) -> bool:
        """Tell whether the driver has ended, as it does when tasks are lost."""
        return self.driver.poll() is not None

    def results(self) -> list[str]:
        """End the tasks; what became of each."""
        (self.folder / "over").touch()
        try:
            self.driver.wait(timeout=180)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.machine.everything()) from None
        lines = self.machine.log("driver").splitlines()
        return [line.split()[1] for line in lines if line.startswith("result ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preemptions", type=int, default=20)
    n = parser.parse_args().preemptions
    from record import Figure, publish

    start = time.monotonic()
    machine = Machine()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(machine, Path(folder))
            for number in range(n):
                run.preempt(number)
            results = run.results()
            attempts = [len(run.attempts(task)) for task in range(N_TASKS)]
            lost = N_TASKS - len(list(Path(folder).glob("*.died")))  # never came to their end
    finally:
        machine.close()
    charged = N_TASKS - results.count("uncharged")
    more = sum(attempts) - 2 * N_TASKS - n  # first attempts, and those after the tasks' own ends
    waited = sum(run.waited_s) / n
    publish(
        "preemption",
        [
            Figure(
                f"retries charged by {n} preemptions",
                charged,
                "retries",
                None,
                None,
                0,
                not charged,
            ),
            Figure("tasks lost", lost, "tasks", None, None, 0, not lost),
            Figure(
                "attempts beyond one for each preemption", more, "attempts", None, None, 0, not more
            ),
            Figure("from the node's end to the task's next start, mean", waited, "s"),
        ],
        preemptions=n,
        tasks=N_TASKS,
        max_retries=1,
        attempts=attempts,
        results=results,
        seconds=time.monotonic() - start,
    )


if __name__ == "__main__":
    main()
