"""The stages in order: keys, resuming, failures as records, budget, child process, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantum import pipeline
from quantum.base import InputError, ResourceError
from quantum.child import run_in_child
from quantum.cost import n_basis_functions, predicted_cpu_s, select_within_budget
from quantum.export import export_features
from quantum.molecule import species_from_smiles
from quantum.pipeline import (
    Task,
    compute_features,
    plan,
    status,
    wanted,
)
from quantum.schema import CalculationSpec, GridSpec, PipelineSpec, Resources
from quantum.store import MemoryStore, Store

SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.9, margin_bohr=3.0),
)
WATER, ETHANOL = species_from_smiles("O"), species_from_smiles("CCO")


def test_keys_change_from_the_changed_stage_on():
    base = plan(WATER, SPEC)
    finer = SPEC.model_copy(update={"grid": GridSpec(spacing_bohr=0.5)})
    changed = plan(WATER, finer)
    assert changed["scf"] == base["scf"]
    assert changed["elf"] != base["elf"]
    assert changed["features"] != base["features"]
    assert set(plan(ETHANOL, SPEC).values()).isdisjoint(base.values())


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch):
    store = MemoryStore()
    task = Task(species=WATER, spec=SPEC)
    assert compute_features(task, store).status == "done"
    monkeypatch.setattr(pipeline, "_run_stage", None)
    assert compute_features(task, store).status == "present"
    vector = store.get(plan(WATER, SPEC)["features"]).arrays["vector"]
    assert np.isfinite(vector).all()


def test_a_stage_that_is_there_is_not_repeated(monkeypatch: pytest.MonkeyPatch):
    store = MemoryStore()
    compute_features(Task(species=WATER, spec=SPEC, stages=("conformer", "scf")), store)
    monkeypatch.setattr(pipeline, "run_scf", None)
    assert compute_features(Task(species=WATER, spec=SPEC), store).status == "done"


def test_a_failure_is_a_record_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch):
    real = pipeline.run_conformer

    def sometimes(species, spec, geometry):
        if species == ETHANOL:
            raise ResourceError("too large")
        return real(species, spec, geometry)

    monkeypatch.setattr(pipeline, "run_conformer", sometimes)
    store = MemoryStore()
    tasks = [Task(species=s, spec=SPEC, stages=("conformer",)) for s in (ETHANOL, WATER)]
    outcomes = [compute_features(task, store) for task in tasks]
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert (outcomes[0].stage, outcomes[0].kind) == ("conformer", "resource")
    assert wanted(tasks, store) == []
    assert wanted(tasks, store, retry=("resource",)) == tasks[:1]
    table = status(tasks, store)
    assert dict(zip(table["state"], table["species"], strict=True)) == {
        "failed: resource": 1,
        "present": 1,
    }


def test_input_failures_are_never_tried_again(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def refuse(species, spec, geometry):
        calls.append(1)
        raise InputError("wrong")

    monkeypatch.setattr(pipeline, "run_conformer", refuse)
    store = MemoryStore()
    task = Task(species=WATER, spec=SPEC)
    assert compute_features(task, store).kind == "input"
    assert compute_features(task, store).kind == "input"
    assert len(calls) == 1


def test_the_budget_selects_the_cheapest_whatever_the_order():
    species = [species_from_smiles(s) for s in ("CCCCCC", "O", "CCO", "[K+]", "CCCC")]
    calculation = SPEC.calculation
    three = sum(sorted(predicted_cpu_s(s, calculation) for s in species)[:3])
    chosen = select_within_budget(species, calculation, three + 0.01, 100)
    assert [s.smiles for s in chosen] == ["CCO", "O", "[K+]"] or len(chosen) == 3
    assert chosen == select_within_budget(species[::-1], calculation, three + 0.01, 100)
    sizes = [n_basis_functions(s) for s in chosen]
    assert sizes == sorted(sizes, reverse=True)
    assert select_within_budget(species, calculation, None, 10) == select_within_budget(
        species, calculation, 1e9, 10
    )
    assert all(s.n_atoms <= 10 for s in select_within_budget(species, calculation, None, 10))


def test_basis_size_is_that_of_def2_svp():
    paracetamol = species_from_smiles("CC(=O)Nc1ccc(O)cc1")
    assert n_basis_functions(paracetamol) == 199


def test_a_child_process_computes_and_a_deadline_ends_it(tmp_path: Path):
    store = Store(tmp_path)
    task = Task(species=WATER, spec=SPEC)
    outcome = run_in_child(task, tmp_path, Resources(time_limit_s=120))
    assert outcome.status == "done"
    assert store.has(plan(WATER, SPEC)["features"])
    slow = Task(species=ETHANOL, spec=SPEC)
    outcome = run_in_child(slow, tmp_path, Resources(time_limit_s=0.05))
    assert (outcome.status, outcome.kind) == ("failed", "resource")
    assert store.failure(plan(ETHANOL, SPEC)[outcome.stage]).kind == "resource"
    assert wanted([slow], store, retry=("resource",)) == [slow]


def test_export_has_a_row_for_everyone_and_a_digest_of_the_content(tmp_path: Path):
    store = Store(tmp_path / "store")
    compute_features(Task(species=WATER, spec=SPEC), store)
    compute_features(Task(species=ETHANOL, spec=SPEC, stages=("conformer",)), store)
    missing = species_from_smiles("CCCl")
    everyone = [ETHANOL, WATER, missing, WATER]
    folder = export_features(everyone, SPEC, store, tmp_path, "x")
    assert export_features(everyone[::-1], SPEC, store, tmp_path, "x") == folder
    from medrec.molecules.features import FeatureTable

    table = FeatureTable.load(folder)
    assert table.coverage()["species"] == 3
    assert table.coverage()["with ELF map"] == 1
    rows = table.rows([WATER, ETHANOL, missing, species_from_smiles("N")])
    assert rows[-1] == -1
    numbers, coords = table.conformer(int(rows[1]))
    assert len(numbers) == ETHANOL.n_atoms
    assert np.linalg.norm(coords[0] - coords[1]) == pytest.approx(1.52, abs=0.05)
    assert table.conformer(int(rows[2])) is None
    values, mask = table.align([WATER, missing])
    assert mask.tolist() == [True, False]
    assert not values[1].any()
    compute_features(Task(species=ETHANOL, spec=SPEC), store)
    assert export_features(everyone, SPEC, store, tmp_path, "x") != folder
    (folder / "elf_mask.npy").write_bytes(b"broken")
    with pytest.raises(InputError, match="incomplete or damaged"):
        FeatureTable.load(folder)
