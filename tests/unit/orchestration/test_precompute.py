"""The driver of precomputation against a pool that answers as told: no Ray, no chemistry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.drivers import driver_name, is_dead
from orchestration.graph import Backlog, Piece, conformer_batches, pieces_of
from orchestration.ledger import Ledger
from orchestration.precompute import Driver, with_history
from orchestration.tally import Settings, Tally, explain
from orchestration.tasks import Answer, Ask, Lost
from quantum.base import ProgramMissingError, ResourceError, TransientError
from quantum.molecule import species_from_smiles
from quantum.pipeline import Outcome, Task, wanted
from quantum.schema import LEVELS, CalculationSpec, ConformerSpec, PipelineSpec, Resources
from quantum.store import MemoryStore, Record

SPEC = PipelineSpec(calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0))
LIMITS = Resources(memory_mb=4000, time_limit_s=3600)
NAMES = ("O", "CCO", "CC", "CCC", "CCCC", "N", "CO")
LARGE = "CCCCCCCCCCOC(=O)C1=C(COCCN)NC(C)=C(C(=O)OC)C1c1ccccc1Cl"


def task(smiles: str, **facts: Any) -> Task:
    return Task(species=species_from_smiles(smiles), spec=SPEC, **facts)


@dataclass
class FakePool:
    """Runs a piece when its answer is asked for, oldest first."""

    answer: Callable[[Piece, int], Any]
    nodes: tuple[str, ...] = ("a",)
    node_of: Callable[[Piece], str] = lambda piece: "a"
    waiting: list[tuple[Any, Piece, Ask]] = field(default_factory=list)
    asked: list[tuple[Piece, Ask]] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)
    most: int = 0

    def __post_init__(self) -> None:
        alive = [{"NodeID": name, "Alive": True} for name in self.nodes]
        self.ray = SimpleNamespace(nodes=lambda: alive)

    def __len__(self) -> int:
        return len(self.waiting)

    def exclude(self, nodes: list[str]) -> None:
        self.excluded |= set(nodes)

    def submit(self, token: Any, function: Any, item: Piece, ask: Ask) -> None:
        self.waiting.append((token, item, ask))
        self.asked.append((item, ask))
        self.most = max(self.most, len(self.waiting))

    def finished(self, timeout_s: float) -> list[Answer]:
        if not self.waiting:
            return []
        token, piece, _ = self.waiting.pop(0)
        attempt = sum(item.tasks == piece.tasks for item, _ in self.asked)
        return [Answer(token, self.answer(piece, attempt), self.node_of(piece))]

    def cancel(self) -> None:
        self.waiting.clear()


class Clock:
    """Time that passes by looking at it."""

    now = 0.0

    def __call__(self) -> float:
        Clock.now += 0.5
        return Clock.now


def done(store: MemoryStore, piece: Piece) -> list[Outcome]:
    """What the child does: put all stages into the store."""
    outcomes = []
    for item in piece.tasks:
        keys = item.keys
        new = [stage for stage in item.stages if not store.has(keys[stage])]
        for stage in new:
            store.put(Record(key=keys[stage], stage=stage, request={}))
        status = "done" if new else "present"
        outcomes.append(Outcome(species_key=item.species.key, status=status, stages=tuple(new)))
    return outcomes


def failed(piece: Piece, kind: str, stage: str = "scf") -> list[Outcome]:
    return [
        Outcome(species_key=t.species.key, status="failed", stage=stage, kind=kind, message="why")
        for t in piece.tasks
    ]


@dataclass
class World:
    """A driver, its store and what it said."""

    store: MemoryStore
    folder: Path
    said: list[str] = field(default_factory=list)

    def drive(
        self, pool: FakePool, pieces: list[Piece] | Backlog, window: int = 4, **more: Any
    ) -> Tally:
        Clock.now = 0.0
        settings = Settings(LIMITS, window=lambda: window, clock=Clock(), grace_s=5, **more)
        self.ledger = Ledger(self.folder / "attempts.sqlite", driver_name())
        driver = Driver(pool, self.store, self.ledger, settings, self.said.append)  # type: ignore[arg-type]
        return driver.run(pieces)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestration.precompute.time.sleep", lambda seconds: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(MemoryStore(), tmp_path)


def small(*names: str) -> list[Piece]:
    return [pieces_of(task(name), LIMITS) for name in names]


def test_everything_is_done_once_and_the_window_is_kept(world: World):
    pool = FakePool(lambda piece, attempt: done(world.store, piece))
    tally = world.drive(pool, small(*NAMES), window=3)
    assert (tally.done, tally.present, tally.finished) == (7, 0, 7)
    assert pool.most == 3
    assert tally.executions == 4 * 7
    assert tally.cost_left_s == pytest.approx(0)
    again = world.drive(pool, small(*NAMES))
    assert (again.done, again.present, again.executions) == (0, 7, 0)


def test_largest_first_but_conformers_before(world: World):
    pool = FakePool(lambda piece, attempt: done(world.store, piece))
    alone = conformer_batches([task("C", stages=("conformer",))], LIMITS, 1)
    world.drive(pool, [*small("O", "CCCC", "CC"), *alone])
    order = [piece.tasks[0].species.smiles for piece, _ in pool.asked]
    assert order == ["C", "CCCC", "CC", "O"]


def test_pieces_of_a_backlog_are_made_one_at_a_time_largest_first(world: World):
    made: list[str] = []

    def make(item: Task) -> Piece:
        made.append(item.species.smiles)
        ahead.append(len(made) - len(pool.asked))
        return pieces_of(item, LIMITS)

    ahead: list[int] = []
    pool = FakePool(lambda piece, attempt: done(world.store, piece))
    tasks = [task(name) for name in NAMES]
    batches = conformer_batches([task("CF", stages=("conformer",))], LIMITS, 1)
    backlog = Backlog(batches, tasks, make)
    assert made == []
    assert backlog.n_tasks == len(NAMES) + 1
    pieces = [pieces_of(item, LIMITS) for item in tasks]
    assert backlog.cost_s == pytest.approx(sum(p.all_cost_s for p in (*pieces, *batches)))
    tally = world.drive(pool, backlog, window=2)
    assert tally.done == len(NAMES) + 1
    assert tally.cost_left_s == pytest.approx(0)
    costs = [pieces_of(task(name), LIMITS).all_cost_s for name in made]
    assert costs == sorted(costs, reverse=True)
    assert sorted(made) == sorted(NAMES)
    assert max(ahead) <= 2  # one in the queue, one on its way there
    assert not any("keys" in item.__dict__ for item in tasks)


def test_a_large_molecule_is_two_pieces_and_a_small_one_is_one(world: World):
    large = Task(species=species_from_smiles(LARGE), spec=LEVELS["tight"])
    piece = pieces_of(large, Resources(memory_mb=50_000, time_limit_s=1e6))
    assert piece.tasks[0].stages == ("conformer", "scf")
    assert piece.then is not None
    assert piece.then.tasks[0].stages == ("elf", "features")
    assert piece.then.limits.memory_mb < piece.limits.memory_mb
    assert piece.all_cost_s == pytest.approx(piece.cost_s + piece.then.cost_s)
    assert pieces_of(task("O"), LIMITS).then is None
    pool = FakePool(lambda piece, attempt: done(world.store, piece))
    tally = world.drive(pool, [piece])
    assert tally.finished == tally.done == 1
    assert [len(item.tasks[0].stages) for item, _ in pool.asked] == [2, 2]


def test_budgets_follow_the_prediction_and_stay_within_the_limits():
    tiny = pieces_of(task("O"), LIMITS).limits
    assert tiny.memory_mb < LIMITS.memory_mb
    assert tiny.time_limit_s < LIMITS.time_limit_s
    tight = Resources(memory_mb=600, time_limit_s=100)
    assert pieces_of(task(LARGE), tight).limits == tight
    assert pieces_of(task("O"), LIMITS).ask(most_memory_mb=100).memory_mb == 100


def test_batches_of_conformers_are_bounded_and_fill_all_slots():
    many = [task("C" * n, stages=("conformer",)) for n in range(1, 60)]
    batches = conformer_batches(many, LIMITS, slots=4)
    assert sorted(t.species.smiles for b in batches for t in b.tasks) == sorted(
        t.species.smiles for t in many
    )
    assert len(batches) >= 8
    assert conformer_batches([], LIMITS, slots=4) == []
    spec = SPEC.model_copy(update={"conformer": ConformerSpec(optimise="dft")})
    heavy = [Task(species=species_from_smiles(n), spec=spec, stages=("conformer",)) for n in NAMES]
    assert len(conformer_batches(heavy, LIMITS, slots=1)) == len(NAMES)


def test_one_bad_molecule_of_a_batch_is_tried_again_alone(world: World):
    many = [task(name, stages=("conformer",)) for name in NAMES]

    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        outcomes = done(world.store, piece)
        for i, item in enumerate(piece.tasks):
            if item.species.smiles == "CC" and len(piece.tasks) > 1:
                outcomes[i] = failed(piece, "crash", "conformer")[i]
        return outcomes

    pool = FakePool(answer)
    tally = world.drive(pool, conformer_batches(many, LIMITS, slots=0))
    assert tally.finished == 7
    assert [len(piece.tasks) for piece, _ in pool.asked] == [7, 1]


def test_out_of_memory_gets_more_of_it_until_no_machine_has_that(world: World):
    pool = FakePool(lambda piece, attempt: failed(piece, "resource"))
    tally = world.drive(pool, small("CCO"), most_memory_mb=lambda: 64_000.0)
    memory = [ask.memory_mb for _, ask in pool.asked]
    assert memory[0] < memory[1] == 4000
    assert memory[2] == 8000
    assert tally.failed == {("scf", "resource"): 1}
    pool = FakePool(lambda piece, attempt: failed(piece, "resource"))
    world.drive(pool, small("CC"), most_memory_mb=lambda: 5000.0)
    assert len(pool.asked) == 2  # nobody has 8000


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [("input", 1), ("convergence", 1), ("crash", 2), ("unknown", 2), ("transient", 5)],
)
def test_attempts_by_kind(world: World, kind: str, attempts: int):
    pool = FakePool(lambda piece, attempt: failed(piece, kind))
    tally = world.drive(pool, small("CCO", "O"))
    assert [t.species.smiles for p, _ in pool.asked for t in p.tasks].count("O") == attempts
    assert tally.failed == {("scf", kind): 2}
    assert explain(tally)[0] == f"2 species failed at scf: {kind}"


def test_a_failure_that_passes_costs_nothing(world: World):
    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        return failed(piece, "transient") if attempt < 3 else done(world.store, piece)

    tally = world.drive(FakePool(answer), small(*NAMES))
    assert (tally.done, sum(tally.failed.values())) == (7, 0)


def test_what_loses_its_workers_is_quarantined_until_it_is_retried(world: World):
    pool = FakePool(lambda piece, attempt: Lost("lost", "WorkerCrashedError: "))
    tally = world.drive(pool, small("CCO"))
    assert tally.failed == {("conformer", "lost"): 1}
    assert len(pool.asked) == 2
    assert wanted([task("CCO")], world.store) == []
    assert wanted([task("CCO")], world.store, retry=("transient",)) == [task("CCO")]


def test_a_full_disk_pauses_and_goes_on_when_there_is_space(world: World):
    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        return failed(piece, "disk_full") if Clock.now < 60 else done(world.store, piece)

    tally = world.drive(FakePool(answer), small(*NAMES))
    assert tally.done == 7
    assert [line.split(":")[0] for line in world.said] == ["paused"]


def test_a_disk_that_stays_full_ends_the_run(world: World):
    pool = FakePool(lambda piece, attempt: failed(piece, "disk_full"))
    with pytest.raises(ResourceError, match="no space left for results in memory"):
        world.drive(pool, small(*NAMES))
    assert wanted([task(name) for name in NAMES], world.store) == [task(name) for name in NAMES]


def test_a_store_that_stays_away_ends_the_run(world: World):
    pool = FakePool(lambda piece, attempt: failed(piece, "store"))
    with pytest.raises(TransientError, match="goes on where this ended"):
        world.drive(pool, small("O"))


def test_what_another_driver_computes_is_waited_for(world: World):
    state = {"polls": 0}

    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        state["polls"] += 1
        if attempt < 5:
            return [
                Outcome(
                    species_key=t.species.key,
                    status="elsewhere",
                    stage="scf",
                    message=f"other:1:2:3 {attempt}",
                )
                for t in piece.tasks
            ]
        if attempt == 5:
            done(world.store, piece)  # the other one
        return done(world.store, piece)

    tally = world.drive(FakePool(answer), small("O"))
    assert (tally.present, tally.executions, state["polls"]) == (1, 0, 5)


def test_a_silent_driver_is_taken_over_by_watching_its_beat_alone(world: World):
    key = task("O").keys["scf"]
    assert world.store.claim(key, "other:1:2:3") is None

    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        holder = world.store.claim(key, "me")
        if holder is None:
            return done(world.store, piece)
        species = piece.tasks[0].species.key
        return [Outcome(species_key=species, status="elsewhere", stage="scf", message=holder)]

    tally = world.drive(FakePool(answer), small("O"))
    assert tally.done == 1
    assert Clock.now > 60


def test_a_dead_driver_of_this_machine_is_seen_at_once():
    mine = driver_name()
    assert not is_dead(f"{mine} 3")
    host, pid, start, rest = mine.split(":")
    assert is_dead(f"{host}:{pid}:{int(start) - 1}:{rest} 3")  # the number was used again
    assert not is_dead(f"elsewhere:{pid}:{int(start) - 1}:{rest} 3")
    assert not is_dead("unknown 0")


def test_a_node_without_the_program_gets_no_more_work(world: World):
    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        bad = "a" not in pool.excluded
        return failed(piece, "program_missing") if bad else done(world.store, piece)

    pool = FakePool(answer, nodes=("a", "b"))
    assert world.drive(pool, small("O", "N"), window=1).done == 2
    assert pool.excluded == {"a"}
    pool = FakePool(lambda piece, attempt: failed(piece, "program_missing"))
    with pytest.raises(ProgramMissingError):
        world.drive(pool, small("CC"))


def test_a_node_on_which_everything_fails_gets_no_more_work(world: World):
    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        return failed(piece, "crash") if not pool.excluded else done(world.store, piece)

    pool = FakePool(answer, nodes=("a", "b"))
    world.drive(pool, small(*NAMES), window=1)
    assert pool.excluded == {"a"}
    assert any("gets no more work" in line for line in world.said)


def test_interruption_lets_running_pieces_finish_and_feeds_no_more(world: World):
    state = {"answers": 0}

    def answer(piece: Piece, attempt: int) -> list[Outcome]:
        state["answers"] += 1
        if state["answers"] == 2:
            raise KeyboardInterrupt
        return done(world.store, piece)

    pool = FakePool(answer)
    with pytest.raises(KeyboardInterrupt):
        world.drive(pool, small(*NAMES), window=3)
    assert state["answers"] >= 3  # those that ran were taken
    assert len(pool.asked) <= 4
    assert "Ctrl-C again stops at once" in world.said[0]
    assert not world.store._claims


def test_the_ledger_remembers_attempts_for_the_next_driver(world: World):
    world.drive(FakePool(lambda piece, attempt: failed(piece, "resource")), small("CCO"))
    world.ledger.close()
    fresh = Ledger(world.folder / "attempts.sqlite", "next")
    make = partial(pieces_of, limits=LIMITS)
    piece = with_history(make, fresh, LIMITS)(task("CCO"))
    assert piece.failed == {"resource": 2}
    assert piece.limits.memory_mb == 8000
    forgiven = with_history(make, fresh, LIMITS, retry=("resource",))(task("CCO"))
    assert forgiven == small("CCO")[0]
    summary = fresh.summary()
    assert summary[["status", "stage", "kind", "attempts"]].values.tolist() == [
        ["failed", "scf", "resource", 3]
    ]
    fresh.close()


def test_a_damaged_ledger_is_set_aside(tmp_path: Path):
    path = tmp_path / "attempts.sqlite"
    path.write_bytes(b"no database at all" * 100)
    ledger = Ledger(path, "me")
    ledger.add("k" * 64, Outcome(species_key="s", status="failed", stage="scf", kind="crash"))
    assert ledger.failures() == {}
    ledger.write()
    assert ledger.failures() == {"k" * 64: {"crash": 1}}
    ledger.close()
    assert len(list(tmp_path.glob("*damaged*"))) == 1
