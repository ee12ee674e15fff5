"""Makes stages of chosen molecules fail for real, and notes every start and end of a stage.

Works in every Python process with this folder on its path and ``MEDREC_FAULTS`` set to a plan.

The plan is JSON: ``log`` (file to append to), ``sleep_s`` (before every stage), and ``cases``: a
list of ``{"smiles", "stage", "do", "times"}``, where ``times`` counts over all processes.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

PLAN, CLOCK = "MEDREC_FAULTS", "MEDREC_FAULTS_CLOCK_S"


class Patch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads `quantum.pipeline` and wraps the function that runs a stage."""

    def find_spec(self, name, path, target=None):
        if name != "quantum.pipeline":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        real = module._run_stage

        def run_stage(stage, task, keys, store, resources):
            plan = json.loads(Path(os.environ[PLAN]).read_text())
            facts = {"stage": stage, "smiles": task.species.smiles, "key": keys[stage]}
            note(plan, event="start", **facts)
            time.sleep(plan.get("sleep_s", 0.0))
            for case in plan["cases"]:
                if is_due(case, plan, facts):
                    note(plan, event="fault", do=case["do"], **facts)
                    fail(case)
            record = real(stage, task, keys, store, resources)
            from quantum.store_base import encode, numbers_digest

            note(plan, event="end", numbers=numbers_digest(encode(record)[0]), **facts)
            return record

        module._run_stage = run_stage


def note(plan, **facts):
    line = json.dumps({**facts, "pid": os.getpid(), "time": time.monotonic()}) + "\n"
    handle = os.open(plan["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


def is_due(case, plan, facts):
    if (case["smiles"], case["stage"]) != (facts["smiles"], facts["stage"]):
        return False
    if case.get("times") is None:
        return True
    lines = map(json.loads, Path(plan["log"]).read_text().splitlines())
    same = {"event": "fault", "do": case["do"], "key": facts["key"]}
    return sum(same.items() <= line.items() for line in lines) < case["times"]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def fail(case):
    import ctypes
    import signal

    import numpy as np

    from quantum.base import ConvergenceError

    server = os.getppid()
    if case["do"] == "segfault":
        print("about to read address 0", flush=True)
        ctypes.string_at(0)
    elif case["do"] == "kill_worker":
        os.kill(parent_of(server), signal.SIGKILL)
        time.sleep(600)
    elif case["do"] == "kill_server":
        os.kill(server, signal.SIGKILL)
        time.sleep(600)
    elif case["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif case["do"] == "hang":
        time.sleep(600)
    elif case["do"] == "sleep":
        time.sleep(case["seconds"])
    elif case["do"] == "memory":
        np.ones(case["mb"] * 2**17)
    elif case["do"] == "eat":
        eaten = np.ones(case["mb"] * 2**17)
        time.sleep(600)
        del eaten
    elif case["do"] == "convergence":
        raise ConvergenceError("the energy oscillates", [-1.0, -2.0])
    else:
        raise AssertionError(case)


def shift_clock(seconds):
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


if os.environ.get(PLAN):
    sys.meta_path.insert(0, Patch())
if os.environ.get(CLOCK):
    shift_clock(float(os.environ[CLOCK]))
