"""The simulated cluster against closed forms, brute force and an independent list scheduler."""

from __future__ import annotations

import heapq
import importlib
import itertools
import math
import os
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def sim() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("benchmarks")
        return importlib.import_module("simulate")


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        patch.syspath_prepend("benchmarks")
        return importlib.import_module("cluster_runs")


def run(sim: Any, core_s: Any, order: Any = None, **settings: Any) -> Any:
    """A batch on a cluster without any overhead, but for what ``settings`` say."""
    core_s = np.asarray(core_s, float)
    order = np.arange(len(core_s)) if order is None else np.asarray(order)
    take = {
        kind: {k: settings.pop(k) for k in list(settings) if k in kind.__dataclass_fields__}
        for kind in (sim.Driver, sim.SharedStore, sim.Cluster)
    }
    seed, more = settings.pop("seed", 0), settings
    driver = sim.Driver(**{"window": len(core_s), **take[sim.Driver]})
    cluster = sim.Cluster(**{"nodes": 1, "cores": 4, **take[sim.Cluster]})
    asked = more.pop("batch_memory", None)
    asked = None if asked is None else np.array(asked)
    batch = sim.Batch(core_s, order, memory_mb=asked, **more)
    return sim.simulate(batch, cluster, driver, sim.SharedStore(**take[sim.SharedStore]), seed)


def list_schedule(times: Any, machines: int) -> float:
    """Makespan of list scheduling, written independently."""
    free = [0.0] * machines
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)


def optimum(times: Any, machines: int) -> float:
    best = math.inf
    for choice in itertools.product(range(machines), repeat=len(times)):
        best = min(best, max(np.bincount(choice, times, machines)))
    return best


@pytest.mark.parametrize(("tasks", "waves"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_equal_tasks_on_one_node(sim: Any, tasks: int, waves: int) -> None:
    result = run(sim, [10.0] * tasks, boot_s=60.0, commit_s=0.5)
    assert result.makespan_s == pytest.approx(60.0 + waves * 10.5)
    assert result.paid_s == pytest.approx(4 * (60.0 + waves * 10.5))
    assert result.efficiency == pytest.approx(10.0 * tasks / result.paid_s)
    assert result.boot_s == pytest.approx(240.0)
    assert result.store_s == pytest.approx(0.5 * tasks)
    assert (result.executions, result.lost_executions) == (tasks, 0)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_is_list_scheduling(sim: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times, order = rng.lognormal(3, 1, 200), rng.permutation(200)
    result = run(sim, times, order, nodes=3, cores=5)
    assert result.makespan_s == pytest.approx(list_schedule(times[order], 15))


@pytest.mark.parametrize("machines", [2, 3])
def test_largest_first_keeps_grahams_bound(sim: Any, machines: int) -> None:
    rng = np.random.default_rng(machines)
    for _ in range(20):
        times = rng.integers(1, 20, 7).astype(float)
        best = optimum(times, machines)
        largest = run(sim, times, np.argsort(-times), cores=machines).makespan_s
        any_order = run(sim, times, cores=machines).makespan_s
        assert best - 1e-9 <= largest <= (4 / 3 - 1 / (3 * machines)) * best + 1e-9
        assert best - 1e-9 <= any_order <= (2 - 1 / machines) * best + 1e-9


def test_grahams_worst_case_is_reached(sim: Any) -> None:
    """Largest first on 5, 5, 4, 4, 3, 3, 3 and three machines: 11 against an optimum of 9."""
    assert run(sim, [5, 5, 4, 4, 3, 3, 3], cores=3).makespan_s == 11.0


def test_short_tasks_are_bound_by_the_driver(sim: Any) -> None:
    result = run(sim, [0.01] * 2000, nodes=10, cores=10, window=200, task_s=0.01)
    # 200 are handed out before the first outcome is taken; each outcome costs as much again
    assert result.makespan_s == pytest.approx(2200 * 0.01, rel=0.01)
    assert result.shares()["driver"] + result.shares()["idle"] > 0.98


def test_cost_per_task_in_flight_adds_up(sim: Any) -> None:
    flat = run(sim, [1e-6] * 50, window=1, task_s=0.1)
    loaded = run(sim, [1e-6] * 50, window=10, task_s=0.1, in_flight_s=0.01)
    assert flat.makespan_s == pytest.approx(0.1 + 50 * 0.1, rel=1e-4)
    # outcomes 1 to 40 leave 9 in flight, the last ten leave 9, 8, ..., 0
    assert loaded.makespan_s == pytest.approx(1.0 + 5.0 + 0.01 * (41 * 9 + 36), rel=1e-4)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_narrow_window_leaves_cores_idle(sim: Any, window: int) -> None:
    result = run(sim, [10.0] * 240, nodes=2, cores=4, window=window)
    assert result.efficiency == pytest.approx(window / 8)


def test_transfers_wait_for_each_other(sim: Any) -> None:
    result = run(sim, [1.0] * 100, nodes=25, size=np.full(100, 5e6), bytes_per_s=1e6)
    assert result.makespan_s == pytest.approx(1.0 + 100 * 5.0)
    assert result.store_s == pytest.approx(5.0 * 100 * 101 / 2)


def test_tasks_of_several_cores_follow_amdahl(sim: Any) -> None:
    batch = sim.Batch(np.full(4, 100.0), np.arange(4), cores=4, serial_share=0.1)
    result = sim.simulate(batch, sim.Cluster(nodes=1, cores=8), sim.Driver(4), sim.SharedStore())
    assert result.makespan_s == pytest.approx(2 * 100 * (0.1 + 0.9 / 4))
    assert result.slow_s == pytest.approx(4 * (4 * 32.5 - 100))


def test_slow_nodes_take_longer(sim: Any) -> None:
    result = run(sim, [10.0] * 8, slow_share=1.0, slow_factor=3.0)
    assert result.makespan_s == pytest.approx(60.0)
    assert result.slow_s == pytest.approx(8 * 20.0)


def test_idle_nodes_are_released(sim: Any) -> None:
    result = run(sim, [10.0, 10.0, 10.0, 10.0, 1000.0], [4, 0, 1, 2, 3], nodes=2, idle_timeout_s=50)
    assert result.makespan_s == 1000.0
    assert result.node_s == pytest.approx(1000.0 + 10.0 + 50.0)


def test_cores_wait_for_the_driver(sim: Any) -> None:
    """Four tasks handed out at 1, 2, 3 and 4 s; the outcomes come at 11 to 14 and cost 1 s each."""
    result = run(sim, [10.0] * 4, task_s=1.0)
    assert result.makespan_s == 15.0
    assert result.driver_s == 1 + 2 + 3 + 4


def test_spread_of_node_speeds_keeps_the_mean(sim: Any) -> None:
    result = run(sim, [10.0] * 4000, nodes=4000, cores=1, speed_sigma=0.3)
    assert result.slow_s / result.useful_s == pytest.approx(0.0, abs=4 * 0.3 / math.sqrt(4000))
    assert result.makespan_s > 20.0


class FixedDraws:
    """By hand: nodes of mean speed; the first that comes up is preempted after 4 s."""

    def __init__(self, _seed: int) -> None:
        self.times = iter([4.0])

    def random(self) -> float:
        return 0.5

    def standard_normal(self) -> float:
        return 0.0

    def exponential(self, _mean: float) -> float:
        return next(self.times, 1e9)


@pytest.fixture
def first_node_is_lost(sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.np.random, "default_rng", FixedDraws)


LOST: dict[str, Any] = {"nodes": 2, "cores": 1, "preemptions_per_hour": 1.0}


@pytest.mark.usefixtures("first_node_is_lost")
def test_lost_task_runs_behind_those_in_flight(sim: Any) -> None:
    """Notice at 6, its successor up at 8, gone at 9; the first task again from 22 to 42."""
    result = run(sim, [20.0, 10, 10, 10, 10], boot_s=2.0, notice_s=3.0, **LOST)
    assert (result.makespan_s, result.node_s) == (42.0, 9.0 + 42.0 + 36.0)
    assert (result.lost_s, result.lost_executions) == (7.0, 1)
    assert (result.nodes, result.preemptions) == (3, 1)


@pytest.mark.usefixtures("first_node_is_lost")
def test_lost_task_goes_to_an_idle_node_before_a_new_one_is_launched(sim: Any) -> None:
    waiting = run(sim, [20.0], boot_s=2.0, notice_s=3.0, **LOST)
    assert (waiting.makespan_s, waiting.nodes) == (29.0, 2)
    released = run(sim, [20.0], boot_s=2.0, notice_s=3.0, idle_timeout_s=1.0, **LOST)
    assert (released.makespan_s, released.nodes) == (31.0, 3)
    assert released.node_s == 9.0 + 3.0 + 22.0


@pytest.mark.usefixtures("first_node_is_lost")
def test_a_draining_node_leaves_the_next_task_to_another(sim: Any) -> None:
    result = run(sim, [10.0, 10.0], window=1, notice_s=100.0, **LOST)
    assert (result.makespan_s, result.lost_executions) == (20.0, 0)


@pytest.mark.usefixtures("first_node_is_lost")
def test_a_node_lost_while_its_task_was_not_handed_out_loses_nothing(sim: Any) -> None:
    result = run(sim, [5.0], task_s=10.0, **{**LOST, "nodes": 1})
    assert result.makespan_s == 10.0 + 5.0 + 10.0
    assert (result.driver_s, result.lost_s, result.lost_executions) == (10.0, 0.0, 0)


PREEMPTED: dict[str, Any] = {
    "nodes": 6, "boot_s": 30.0, "idle_timeout_s": 100.0, "preemptions_per_hour": 6.0,
    "speed_sigma": 0.1, "slow_share": 0.1, "commit_s": 0.1, "bytes_per_s": 1e6, "task_s": 0.01,
    "window": 48,
}  # fmt: skip


@pytest.mark.parametrize("notice", [0.0, 20.0])
def test_paid_time_is_accounted_for_under_preemption(sim: Any, notice: float) -> None:
    rng = np.random.default_rng(1)
    times, size = rng.lognormal(3, 1, 3000), rng.uniform(0, 1e5, 3000)
    result = run(sim, times, size=size, notice_s=notice, **PREEMPTED)
    assert result.preemptions > 10
    assert result.nodes > 6
    assert result.useful_s == pytest.approx(times.sum())
    assert result.executions == 3000 + result.lost_executions
    assert 0 < result.lost_executions <= 4 * result.preemptions
    assert min(result.driver_s, result.store_s, result.lost_s, result.idle_s) >= 0
    assert result.efficiency + sum(result.shares().values()) == pytest.approx(1.0)
    assert result == run(sim, times, size=size, notice_s=notice, **PREEMPTED)
    assert result != run(sim, times, size=size, notice_s=notice, seed=1, **PREEMPTED)


def test_idle_cores_are_counted_apart(sim: Any) -> None:
    """The remainder called idle is the waiting that list scheduling predicts."""
    times = np.random.default_rng(2).lognormal(2, 1, 100)
    result = run(sim, times, nodes=2, cores=8)
    assert result.idle_s == pytest.approx(16 * list_schedule(times, 16) - times.sum())


def test_a_notice_longer_than_the_tasks_saves_the_work(sim: Any) -> None:
    settings: dict[str, Any] = {"nodes": 4, "preemptions_per_hour": 20.0, "boot_s": 10.0}
    warned = run(sim, [15.0] * 4000, notice_s=15.0, **settings)
    sudden = run(sim, [15.0] * 4000, notice_s=0.0, **settings)
    assert warned.preemptions > 20
    assert (warned.lost_executions, warned.lost_s) == (0, 0.0)
    assert sudden.lost_executions == pytest.approx(4 * sudden.preemptions, rel=0.1)
    # a node is lost at a random moment of its tasks
    assert sudden.lost_s == pytest.approx(sudden.lost_executions * 7.5, rel=0.3)


def test_preemptions_come_at_the_stated_rate(sim: Any) -> None:
    result = run(sim, [30.0] * 60_000, nodes=20, preemptions_per_hour=2.0)
    expected = 2.0 * result.node_s / 3600
    assert abs(result.preemptions - expected) < 4 * math.sqrt(expected)


def test_one_node_that_is_lost_again_and_again_still_finishes(sim: Any) -> None:
    result = run(sim, [50.0] * 40, preemptions_per_hour=60.0, boot_s=20.0, idle_timeout_s=5.0)
    assert result.preemptions >= 3
    assert result.nodes >= result.preemptions
    assert result.useful_s == 2000.0


@pytest.mark.parametrize(
    ("order", "cores", "words"),
    [([0, 0], 1, "once"), ([0], 1, "once"), ([0, 1], 17, "17 cores")],
)
def test_impossible_requests_are_refused(sim: Any, order: Any, cores: int, words: str) -> None:
    batch = sim.Batch(np.ones(2), np.array(order), cores=cores)
    with pytest.raises(ValueError, match=words):
        sim.simulate(batch, sim.Cluster(1), sim.Driver(1), sim.SharedStore())


@pytest.mark.parametrize("memory", [99.0, 199.0, 400.0])
def test_tasks_that_want_memory_run_as_many_as_fit(sim: Any, memory: float) -> None:
    """As many as fit at once, whatever the cores."""
    result = run(sim, [10.0] * 12, memory_mb=memory, batch_memory=[64.0] * 12)
    at_once = min(int(memory // 64), 4)
    assert result.makespan_s == pytest.approx(10.0 * 12 / at_once)
    # the last round leaves nothing that waits
    assert result.memory_s == pytest.approx((4 - at_once) * (result.makespan_s - 10.0))
    assert result.useful_s + result.memory_s + result.idle_s == pytest.approx(result.paid_s)


def test_what_does_not_fit_lets_smaller_tasks_pass(sim: Any) -> None:
    """Of 128 units, a task of 64 and one of 128 wait for each other; four of 16 go in between."""
    asked = [64.0, 128.0, 16.0, 16.0, 16.0, 16.0]
    result = run(sim, [10.0, 10, 3, 3, 3, 1], memory_mb=128.0, batch_memory=asked)
    assert result.makespan_s == 20.0
    # two cores from 3 on, the last one from 4 on, until all memory is free
    assert result.memory_s == pytest.approx(7.0 + 7 + 6)
    assert result.idle_s == pytest.approx(30.0)
    with pytest.raises(ValueError, match="a task of 128 MB on nodes of 100"):
        run(sim, [1.0], memory_mb=100.0, batch_memory=[128.0])


def test_a_second_piece_follows_on_the_first(sim: Any) -> None:
    """Tasks 0 and 1 are a chain, 2 and 3 fill the other core."""
    result = run(sim, [5.0, 4.0, 3.0, 3.0], [0, 2, 1, 3], cores=2, after=np.array([-1, 0, -1, -1]))
    assert result.makespan_s == 9.0
    late = run(sim, [5.0, 4.0], [1, 0], cores=2, after=np.array([-1, 0]))
    assert late.makespan_s == 9.0


def test_outcomes_that_are_there_are_taken_together(sim: Any) -> None:
    """Four outcomes at once, each look at what is in flight costs 1 s a task: one look or four."""
    settings: dict[str, Any] = {"cores": 4, "window": 4, "in_flight_s": 1.0}
    one_by_one = run(sim, [10.0] * 4, **settings)
    together = run(sim, [10.0] * 4, gather=256, **settings)
    assert one_by_one.makespan_s == 10.0 + 3 + 2 + 1
    assert together.makespan_s == 10.0 + 3


def test_a_growing_cluster_launches_for_what_is_in_flight(sim: Any) -> None:
    """Eight tasks in flight are two nodes; these allow 24, six nodes, capped at five."""
    settings: dict[str, Any] = {"nodes": 5, "boot_s": 30.0, "grows": True}
    result = run(sim, [100.0] * 40, window=8, per_slot=3.0, **settings)
    assert result.nodes == 5
    assert result.boot_s == pytest.approx(5 * 4 * 30.0)
    # 8 start at 30 and 12 at 60, then 8 at 130 and 12 at 160
    assert result.makespan_s == 260.0
    narrow = run(sim, [100.0] * 40, window=8, **settings)
    assert (narrow.nodes, narrow.makespan_s) == (2, 530.0)
    wide = run(
        sim, [10.0] * 8, window=8, **{**settings, "memory_mb": 16.0}, batch_memory=[16.0] * 8
    )
    assert wide.nodes == 5


def test_a_start_is_paid_and_not_useful(sim: Any) -> None:
    result = run(sim, [10.0] * 4, start_s=1.0)
    assert (result.makespan_s, result.useful_s, result.slow_s) == (11.0, 40.0, 4.0)


# --------------------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def found(bench: Any) -> Any:
    return bench.Calibration(
        cost_bias=1.0, cost_size_exponent=0.0, cost_sigma=0.0, conformer_at_300_s=0.1,
        conformer_exponent=2.0, conformer_sigma=0.0, driver_task_s=0.001, driver_in_flight_s=0.0,
        smiles_s=0.002, prepare_s=0.001, child_start_s=0.0, commit_s=0.0, files_per_molecule=6,
        bytes_per_function=0.0,
    )  # fmt: skip


def equal_molecules(bench: Any, count: int, core_s: float, conformer_s: float = 0.0) -> Any:
    facts = np.zeros((count, 5))
    facts[:, bench.SECONDS], facts[:, bench.HAS_SCF] = core_s, 1.0
    return bench.Molecules("equal", facts, np.full(count, core_s), np.full(count, conformer_s))


CALM: dict[str, Any] = {
    "preemptions_per_node_hour": 0.0, "node_speed_sigma": 0.0, "slow_node_share": 0.0,
    "round_trip_s": 0.0,
}  # fmt: skip


def test_log_fit_finds_a_power_law() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("benchmarks")
        log_fit = importlib.import_module("cluster_calibration").log_fit
    x = np.array([1.0, 2.0, 5.0, 9.0])
    assert log_fit(x, 3.0 * x**1.7) == pytest.approx((3.0, 1.7, 0.0), abs=1e-12)


def test_drawn_molecules_follow_the_calibration(bench: Any, found: Any) -> None:
    facts = np.array([[10.0, 150.0, 1.0, 500.0, 1.0], [40.0, 600.0, 2.0, 900.0, 1.0]])
    index = np.arange(20_000) % 2
    wide = bench.replace(found, cost_bias=1.5, cost_size_exponent=1.0, cost_sigma=0.05)
    drawn = bench.draw("two", index, facts, wide)
    logs = np.log(drawn.core_s[1::2] / (40.0 * 1.5 * 2.0))
    hard = np.abs(logs - np.log(3.0)) < 0.3
    assert np.median(logs) == pytest.approx(0.0, abs=0.02)
    assert 0.005 < hard.mean() < 0.02
    assert drawn.conformer_s[1] / drawn.conformer_s[0] == pytest.approx(16.0)
    assert drawn.facts[:2, bench.SECONDS].tolist() == [10.0, 40.0]


def test_simulated_pieces_are_those_of_the_graph(bench: Any) -> None:
    """Real molecules: as many pieces, of the same cost and memory, as the code cuts."""
    from orchestration.graph import conformer_batches, pieces_of
    from quantum.molecule import species_from_smiles
    from quantum.pipeline import Task

    smiles = ["CCO", "CC(=O)Nc1ccc(O)cc1", "C" * 60, "C" * 55 + "O", "O" + "C" * 40, "c1ccccc1"]
    species = [species_from_smiles(text) for text in smiles]
    config = bench.CONFIG
    facts = bench.facts_of(species)
    alone = facts[:, bench.HAS_SCF] == 0
    assert alone.tolist() == [False, False, True, True, False, False]
    times = facts[:, bench.SECONDS] + facts[:, bench.CONFORMER]
    molecules = bench.Molecules("real", facts, times, facts[:, bench.CONFORMER])
    work = bench.cut(molecules, 0.0)

    tasks = [Task(species=item, spec=config.pipeline) for item in species]
    chains = [
        pieces_of(task, config.resources) for task, no in zip(tasks, alone, strict=True) if not no
    ]
    expected = [(piece.limits.memory_mb, piece.all_cost_s) for piece in chains]
    expected += [(p.then.limits.memory_mb, p.then.all_cost_s) for p in chains if p.then is not None]
    n = len(expected)
    assert any(piece.then is not None for piece in chains)
    # the graph reckons a molecule's conformer without the number of embeddings
    assert work.priority[:n] == pytest.approx([cost for _, cost in expected], rel=0.02)
    assert work.memory_mb[:n] == pytest.approx([mb for mb, _ in expected], abs=1.0)
    conformers = [
        Task(species=item, spec=config.pipeline, stages=("conformer",))
        for item, no in zip(species, alone, strict=True) if no
    ]  # fmt: skip
    batches = conformer_batches(conformers, config.resources, 0)
    assert work.core_s[n:] == pytest.approx([batch.cost_s for batch in batches])
    assert set(work.memory_mb[n:]) == {float(batches[0].limits.memory_mb)}


def test_policies_order_by_the_prediction(bench: Any) -> None:
    five = equal_molecules(bench, 5, 1.0)
    five.facts[:, bench.SECONDS] = [30.0, 90.0, 10.0, 90.0, 200.0]
    five.facts[:, bench.HAS_SCF] = 1.0
    work = bench.cut(five, 0.0)  # piece 5 is the second of molecule 4, of 30 s
    assert work.after.tolist() == [-1, -1, -1, -1, -1, 4]
    assert work.order("largest first").tolist() == [4, 1, 3, 0, 5, 2]
    assert work.order("smallest first").tolist() == [2, 0, 5, 1, 3, 4]
    assert work.order("submission order").tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(work.order("random", 1)) == [0, 1, 2, 3, 4, 5]


def test_cost_is_what_was_paid(bench: Any, found: Any) -> None:
    molecules = equal_molecules(bench, 320, 100.0)
    calm = bench.replace(bench.ASSUMED, boot_s=200.0, **CALM)
    result = bench.calculate(molecules, 10, found, assumed=calm)
    assert result.makespan_s == pytest.approx(200.0 + 2 * 100.0, abs=1.0)
    assert bench.usd(result, calm) == pytest.approx((10 * 1.00 + 0.40) * 400 / 3600, rel=1e-2)
    assert bench.bottleneck(result.shares()).startswith("boot 50")


def test_nodes_with_little_memory_hold_fewer_large_molecules(bench: Any, found: Any) -> None:
    molecules = equal_molecules(bench, 160, 100.0)
    molecules.facts[:, bench.MEMORY] = 8000.0
    large = bench.replace(bench.ASSUMED, boot_s=0.0, **CALM)
    small = bench.replace(large, node_memory_gb=64.0)
    assert bench.calculate(molecules, 1, found, assumed=large).efficiency > 0.95
    starved = bench.calculate(molecules, 1, found, assumed=small)
    assert starved.shares()["memory"] > 0.6
    assert starved.makespan_s == pytest.approx(160 / 5 * 100.0, rel=0.01)


def test_whole_command_adds_the_driver_that_works_alone(bench: Any, found: Any) -> None:
    molecules = equal_molecules(bench, 16_000, 100.0)
    whole = bench.whole_command(molecules, 10, found)
    assert whole["driver_alone_h"] == pytest.approx(16_000 * 0.003 / 3600)
    assert whole["total_h"] == pytest.approx(whole["driver_alone_h"] + whole["cluster_h"])
    narrow = bench.whole_command(molecules, 10, found, window=16)
    assert narrow["cluster_h"] > 8 * whole["cluster_h"]
