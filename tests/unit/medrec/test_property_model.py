"""Fine-tuning on properties: units, references, missing labels, parts, verdicts."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from sklearn.metrics import log_loss

from medrec.config_molecules import FitConfig, MoleculeEncoderConfig, PropertyConfig, SplitConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import collate
from medrec.library.splits import split_library
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.engine import fit
from medrec.properties.finetune import (
    MEAN,
    SD_UNIT,
    evaluate_property,
    predict,
    property_problem,
)
from medrec.properties.model import PropertyModel, map_molecules, target_scale
from medrec.properties.targets import atom_reference
from quantum.base import InputError

WriteLibrary = Callable[..., MoleculeLibrary]
SMILES = (
    "CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO", "C", "CC(C)C#N", "C1CC1CO",
    "O=C1CCCN1", "c1ccoc1C=O", "CC(=O)Nc1ccc(O)cc1", "F/C=C/F", "C[C@H](N)C(=O)O", "CCCCCCCC",
    "O", "N", "C#N", "CC=O", "COC", "CCC", "C1CCCCC1", "Cc1ccccc1", "Oc1ccccc1", "FC(F)F",
    "CC(C)=O", "CNC", "OCCO", "C=CC=C", "NCC(=O)O",
)  # fmt: skip
ROWS = np.arange(len(SMILES))
U0 = ("u0", "meV", "regression")
SMALL = MoleculeEncoderConfig(d_model=16, layers=2)


def config(**changes: Any) -> PropertyConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "encoder": SMALL,
        "split": SplitConfig(train=0.6, valid=0.2, seed=1),
        "fit": FitConfig(epochs=2, batch_size=8, lr=1e-3),
    }
    return PropertyConfig(**settings | changes)


@pytest.fixture(scope="module")
def library(write_library: WriteLibrary, tmp_path_factory: Any) -> MoleculeLibrary:
    """Total energies with references, another target with gaps, two classes with gaps."""
    rng = np.random.default_rng(0)
    targets = np.stack(
        [
            [_atom_energy(text) for text in SMILES] + rng.normal(5e4, 900.0, len(SMILES)),
            rng.normal(-3.0, 0.01, len(SMILES)),
        ],
        axis=1,
    )
    targets[::4, 1] = np.nan
    folder = tmp_path_factory.mktemp("properties") / "energies"
    info = (U0, ("odd", "D", "regression"))
    return write_library(folder, SMILES, targets=targets, target_info=info)


@pytest.fixture(scope="module")
def classes(write_library: WriteLibrary, tmp_path_factory: Any) -> MoleculeLibrary:
    """Nitrogen; oxygen with gaps; one class alone; nothing known. Without positions."""
    contains = [[float("N" in text), float("O" in text), 0.0, np.nan] for text in SMILES]
    targets = np.array(contains)
    targets[::5, 1] = np.nan
    folder = tmp_path_factory.mktemp("properties") / "classes"
    info = [(name, "", "classification") for name in ("has_n", "has_o", "none", "unknown")]
    return write_library(folder, SMILES, targets=targets, target_info=info, conformers=False)


def _atom_energy(smiles: str) -> float:
    """Sum of the references over all atoms, counted by RDKit."""
    reference = atom_reference("u0")
    assert reference is not None
    atoms = Chem.AddHs(Chem.MolFromSmiles(smiles)).GetAtoms()
    return sum(reference[atom.GetAtomicNum()] for atom in atoms)


def _model(library: MoleculeLibrary, *columns: int, **settings: Any) -> PropertyModel:
    torch.manual_seed(0)
    modality = "both" if np.asarray(library.arrays["placed"]).any() else "2d"
    return PropertyModel(
        build_encoder(settings.pop("encoder", SMALL), modality),
        [library.targets_info[column] for column in columns],
        columns,
        target_scale(library, settings.pop("rows", ROWS), columns),
        **settings,
    )


def _loss(model: PropertyModel, batch: MoleculeBatch) -> float:
    return float(model(batch, 0).detach().sum())


def _silence(model: PropertyModel) -> None:
    """Make all outputs 0."""
    torch.nn.init.zeros_(model.head[-1].weight)
    torch.nn.init.zeros_(model.head[-1].bias)


class Silent:
    """A reporter that keeps the metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def epoch(self, metrics: dict[str, Any], make_state: Any) -> None:
        self.rows.append(metrics)

    def checkpoint(self, make_state: Any) -> None: ...

    def progress(self, epoch: int, step: int, n_steps: int, numbers: Any) -> None: ...

    def wants_checkpoint(self) -> bool:
        return False


# --------------------------------------------------------------------------- units and references


def test_an_output_of_zero_is_the_training_mean(small_library: MoleculeLibrary) -> None:
    train, test = np.arange(10), np.arange(10, 16)
    model = _model(small_library, 0, rows=train)
    _silence(model)
    found = predict(model, small_library, test)[:, 0]
    mass = small_library.targets[:, 0]
    np.testing.assert_allclose(found, mass[train].mean(), rtol=1e-12)
    deviation = np.mean([abs(value - sum(mass[:10]) / 10) for value in mass[10:]])
    assert np.abs(found - mass[test]).mean() == pytest.approx(deviation)


@pytest.mark.parametrize("hydrogens", [False, True])
def test_sums_of_atoms_are_predicted_exactly_by_their_references(
    write_library: WriteLibrary, tmp_path: Path, hydrogens: bool
) -> None:
    smiles = (*SMILES, "[2H]OC", "[H][H]", "[NH4+]", "C[C@@H](F)O")
    energies = np.array([_atom_energy(text) for text in smiles]) + 4321.5
    made = write_library(
        tmp_path / "sums",
        smiles,
        hydrogens=hydrogens,
        targets=energies[:, None],
        target_info=(U0,),
    )
    model = _model(made, 0, rows=np.arange(len(smiles)))
    _silence(model)
    found = predict(model, made, np.arange(len(smiles)))[:, 0]
    assert np.abs(energies).max() > 1e7
    np.testing.assert_allclose(found, energies, rtol=0, atol=1e-6)


def test_another_unit_has_no_references(write_library: WriteLibrary, tmp_path: Path) -> None:
    values = np.arange(len(SMILES), dtype=float)[:, None]
    info = (("u0", "eV", "regression"),)
    made = write_library(tmp_path / "ev", SMILES, targets=values, target_info=info)
    scale = target_scale(made, ROWS, [0])
    assert not scale.reference.any()
    assert (scale.mean[0], scale.sd[0]) == (values.mean(), values.std())


def test_standardised_labels_and_predictions_are_each_others_inverse(
    library: MoleculeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = np.arange(20)
    model = _model(library, 0, 1, rows=train)
    base = np.stack([[_atom_energy(text) for text in SMILES], np.zeros(len(SMILES))], axis=1)
    residual = library.targets - base
    mean, sd = np.nanmean(residual[train], axis=0), np.nanstd(residual[train], axis=0)
    assert 500 < sd[0] < 1500
    outputs = torch.from_numpy((residual - mean) / sd).float()
    monkeypatch.setattr(model, "outputs", lambda batch: outputs.nan_to_num(0.3))
    batch = collate(library, ROWS)
    known = ~np.isnan(library.targets)
    np.testing.assert_allclose(
        (model.predict(batch).numpy() - library.targets)[known], 0, atol=1e-3
    )
    assert _loss(model, batch) < 1e-4 * known.sum()
    monkeypatch.setattr(model, "outputs", lambda batch: outputs.nan_to_num(0.3) + 2.0)
    assert _loss(model, batch) == pytest.approx(2.0 * known.sum(), rel=1e-5)


# --------------------------------------------------------------------------- losses


def test_molecules_without_labels_leave_the_gradients_alone(library: MoleculeLibrary) -> None:
    model = _model(library, 1)
    missing = np.isnan(library.targets[:, 1])
    assert 0 < missing.sum() < len(ROWS)
    gradients = []
    for rows in (ROWS, ROWS[~missing]):
        model.zero_grad()
        batch = collate(library, rows)
        assert model.counts(batch, 0).tolist() == [float((~missing).sum())]
        model(batch, 0).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert max(float(item.abs().max()) for item in gradients[0]) > 0


def test_an_unlabelled_target_teaches_its_output_nothing(library: MoleculeLibrary) -> None:
    model = _model(library, 0, 1)
    rows = ROWS[np.isnan(library.targets[:, 1])]
    model(collate(library, rows), 0).sum().backward()
    gradient = model.head[-1].weight.grad
    assert gradient is not None
    assert gradient[0].abs().max() > 0
    assert (gradient[1] == 0).all()


def test_classes_have_the_cross_entropy_of_scikit_learn(classes: MoleculeLibrary) -> None:
    model = _model(classes, 0, 1)
    assert model.terms == ("classification",)
    batch = collate(classes, ROWS)
    scores = predict(model, classes, ROWS)
    expected = 0.0
    for column in (0, 1):
        labels = classes.targets[:, column]
        known = ~np.isnan(labels)
        expected += log_loss(labels[known], scores[known, column], normalize=False)
    assert _loss(model, batch) == pytest.approx(expected, rel=1e-5)
    assert float(model.counts(batch, 0)) == (~np.isnan(classes.targets[:, :2])).sum()
    assert scores.min() > 0
    assert scores.max() < 1


def test_both_kinds_have_a_term_each(write_library: WriteLibrary, tmp_path: Path) -> None:
    targets = np.stack([np.arange(30.0), np.arange(30.0) % 2, 2 * np.arange(30.0)], axis=1)
    targets[0, 2] = np.nan
    info = (("a", "", "regression"), ("b", "", "classification"), ("c", "", "regression"))
    made = write_library(tmp_path / "mixed", SMILES, targets=targets, target_info=info)
    model = _model(made, 0, 1, 2)
    assert model.terms == ("regression", "classification")
    batch = collate(made, ROWS)
    assert model.counts(batch, 0).tolist() == [59.0, 30.0]
    parts = [_model(made, *columns) for columns in ((0, 2), (1,))]
    for part, columns in zip(parts, ([0, 2], [1]), strict=True):
        part.load_state_dict(
            model.state_dict()
            | {
                name: value
                for name, value in part.state_dict().items()
                if name in ("columns", "numeric", "mean", "sd", "reference")
            }
            | {
                f"head.3.{w}": model.state_dict()[f"head.3.{w}"][columns]
                for w in ("weight", "bias")
            }
        )
    alone = torch.cat([part(batch, 0) for part in parts])
    torch.testing.assert_close(model(batch, 0), alone)
    assert predict(model, made, ROWS)[:, 1].max() < 1


def test_an_empty_batch_is_zero_and_differentiable(library: MoleculeLibrary) -> None:
    model = _model(library, 0, 1)
    loss = model(collate(library, ROWS[:0]), 0)
    assert loss.tolist() == [0.0]
    loss.sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_the_head_keeps_float32_under_autocast(library: MoleculeLibrary) -> None:
    model = _model(library, 0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.outputs(collate(library, ROWS))
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, outputs.bfloat16().float())


def test_a_frozen_encoder_neither_learns_nor_drops_out(library: MoleculeLibrary) -> None:
    encoder = SMALL.model_copy(update={"dropout": 0.5})
    model = _model(library, 0, encoder=encoder, freeze_encoder=True).train()
    batch = collate(library, ROWS)
    assert torch.equal(model.outputs(batch), model.outputs(batch))
    model(batch, 0).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    free = _model(library, 0, encoder=encoder).train()
    assert not torch.equal(free.outputs(batch), free.outputs(batch))


# --------------------------------------------------------------------------- predictions


def test_predictions_do_not_depend_on_the_batch(library: MoleculeLibrary) -> None:
    model = _model(library, 0, 1)
    order = np.random.default_rng(1).permutation(ROWS)
    together = predict(model, library, order)
    alone = np.concatenate([predict(model, library, ROWS[i : i + 1]) for i in order])
    sd = model.sd.numpy()
    np.testing.assert_allclose(together / sd, alone / sd, rtol=0, atol=1e-4)
    assert np.ptp(together[:, 1]) > 1e-3 * sd[1]


def test_molecules_come_back_in_order_from_batches_by_size(library: MoleculeLibrary) -> None:
    rows = np.random.default_rng(2).permutation(ROWS)[:17]
    sizes: list[int] = []

    def number(batch: Any) -> torch.Tensor:
        sizes.append(batch.n_slots * batch.n_slots * batch.n_molecules)
        return batch.rows[:, None]

    found = map_molecules(library, rows, number, batch_size=4)
    assert found[:, 0].tolist() == rows.tolist()
    assert len(sizes) == 5
    assert sizes == sorted(sizes)


# --------------------------------------------------------------------------- problems


def test_fitting_lowers_the_loss_tenfold(library: MoleculeLibrary) -> None:
    settings = config(
        encoder=MoleculeEncoderConfig(d_model=32, layers=2),
        targets=("u0",),
        split=SplitConfig(train=29, valid=0),
        fit=FitConfig(epochs=80, batch_size=29, lr=1e-2),
    )
    problem = property_problem(settings, library)
    assert problem.validate is None
    reporter = Silent()
    fit(problem, settings.fit, reporter=reporter)
    assert reporter.rows[-1]["loss"] < 0.1 * reporter.rows[0]["loss"]


def test_scores_and_verdict_are_those_of_the_stored_predictions(library: MoleculeLibrary) -> None:
    settings = config()
    problem = property_problem(settings, library)
    reporter = Silent()
    state = fit(problem, settings.fit, reporter=reporter)
    assert problem.score_name == "valid_mae"
    last = reporter.rows[-1]
    sd = problem.model.sd.numpy()
    assert last["valid_mae"] == pytest.approx(
        np.mean([last["valid_mae_u0"] / sd[0], last["valid_mae_odd"] / sd[1]])
    )
    assert state["best_score"] == min(row["valid_mae"] for row in reporter.rows)

    frame, summary = evaluate_property(problem, settings, state["best"], n_resamples=50)
    assert len(frame) == 2 * 6
    assert set(frame["row"]) == set(split_library(library, settings.split).test.tolist())
    assert (frame["identifier"] == [f"m{row}" for row in frame["row"]]).all()
    rows = frame["row"].to_numpy()[::2]
    np.testing.assert_array_equal(frame["value"].to_numpy().reshape(-1, 2), library.targets[rows])
    table = summary.set_index(["target", "metric", "unit"])
    for name, unit in (("u0", "meV"), ("odd", "D")):
        part = frame[frame["target"] == name].dropna()
        gap = (part["value"] - part["prediction"]).to_numpy()
        for metric, value in (("mae", np.abs(gap).mean()), ("rmse", np.sqrt((gap**2).mean()))):
            row = table.loc[(name, metric, unit)]
            assert row["value"] == pytest.approx(value)
            assert row["n"] == len(part)
            assert row["low"] <= row["value"] <= row["high"]
    mean = table.loc[(MEAN, "mae", SD_UNIT)]
    expected = [table.loc[("u0", "mae", "meV"), "value"], table.loc[("odd", "mae", "D"), "value"]]
    assert mean["value"] == pytest.approx(np.mean(np.array(expected) / sd))
    assert (MEAN, "mae", "meV") not in table.index


def test_the_best_weights_are_judged_not_the_last(library: MoleculeLibrary) -> None:
    settings = config(targets=("u0",))
    problem = property_problem(settings, library)
    weights = {name: value.clone() for name, value in problem.model.state_dict().items()}
    first, _ = evaluate_property(problem, settings, weights, n_resamples=2)
    with torch.no_grad():
        problem.model.head[-1].bias += 5.0
    again, _ = evaluate_property(problem, settings, weights, n_resamples=2)
    assert first.equals(again)


def test_classification_is_scored_by_targets_with_both_classes(classes: MoleculeLibrary) -> None:
    settings = config(modality="2d")
    problem = property_problem(settings, classes)
    assert [target.name for target in problem.model.targets] == ["has_n", "has_o"]
    assert problem.model.notes == (
        "left out, without both classes in the training part: none, unknown",
    )
    assert (problem.score_name, problem.score_mode) == ("valid_roc_auc", "max")
    assert problem.validate is not None
    numbers = problem.validate(problem.model, "cpu")
    assert 0 <= numbers["valid_roc_auc"] <= 1
    assert numbers["valid_targets"] == 2
    frame, summary = evaluate_property(
        problem, settings, problem.model.state_dict(), n_resamples=20
    )
    assert summary["target"].tolist() == ["has_n", "has_o", MEAN]
    assert set(summary["metric"]) == {"roc_auc"}
    assert set(frame["target"]) == {"has_n", "has_o"}


def test_a_limit_takes_nested_subsets_of_the_same_training_part(library: MoleculeLibrary) -> None:
    rows = {n: property_problem(config(limit_train=n), library).rows for n in (5, 10, 1000)}
    assert rows[1000].tolist() == property_problem(config(), library).rows.tolist()
    assert len(rows[5]) == 5
    assert set(rows[5]) < set(rows[10]) < set(rows[1000])
    again = property_problem(config(limit_train=5, fit=FitConfig(seed=7)), library)
    assert again.rows.tolist() == rows[5].tolist()
    assert float(again.model.mean[1]) == pytest.approx(np.nanmean(library.targets[rows[5], 1]))


def test_a_run_starts_from_an_export(library: MoleculeLibrary) -> None:
    first = property_problem(config(fit=FitConfig(seed=1)), library).model
    buffer = io.BytesIO()
    torch.save(first.export(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = property_problem(config(fit=FitConfig(seed=2)), library, start=state).model
    third = property_problem(config(fit=FitConfig(seed=2)), library).model
    name = "encoder.layers.0.mix.0.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], third.state_dict()[name])
    weights = state["property"]["weights"]
    assert torch.equal(weights["head.3.bias"], first.head[3].bias)
    assert weights["mean"].tolist() == first.mean.tolist()


def test_making_a_problem_leaves_the_random_numbers_alone(library: MoleculeLibrary) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (property_problem(config(), library).model for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])


# --------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ("u00",)}, ["'u00'", "did you mean 'u0'", "odd"]),
        ({"split": SplitConfig(train=0.8, valid=0.2)}, ["test part", "empty"]),
        ({"split": SplitConfig(kind="none")}, ["test part", "empty"]),
        ({"limit_train": 1, "targets": ("u0",)}, ["u0", "the same value", "1 training"]),
    ],
)
def test_wrong_settings_are_named(
    library: MoleculeLibrary, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        property_problem(config(**changes), library)
    for word in words:
        assert word in str(caught.value)


def test_useless_targets_are_named(write_library: WriteLibrary, tmp_path: Path) -> None:
    n = len(SMILES)
    targets = np.stack([np.full(n, np.nan), np.full(n, 7.0), np.arange(n), np.ones(n)], axis=1)
    kinds = ("regression", "regression", "regression", "classification")
    info = [(name, "", kind) for name, kind in zip("abcd", kinds, strict=True)]
    made = write_library(
        tmp_path / "useless", SMILES, targets=targets, target_info=info, conformers=False
    )
    for names, words in (
        (("a", "c"), "a: no label among the 18 training molecules"),
        (("b", "c"), "b: the same value for all"),
        (("c", "d"), "of 2 kinds"),
        (("d",), "d: no target has both classes"),
    ):
        with pytest.raises(InputError, match=words):
            property_problem(config(targets=names, modality="2d"), made)
    for modality in ("both", "3d"):
        with pytest.raises(InputError, match=r"3D coordinates.*expected modality 2d"):
            property_problem(config(targets=("c",), modality=modality), made)


def test_a_start_of_another_size_or_kind_is_refused(library: MoleculeLibrary) -> None:
    state = build_encoder(MoleculeEncoderConfig(d_model=8, layers=2), "both").export()
    with pytest.raises(InputError, match="8"):
        property_problem(config(), library, start=state)
    gine = build_encoder(MoleculeEncoderConfig(kind="gine", d_model=16, layers=2), "2d").export()
    with pytest.raises(InputError, match="gine"):
        property_problem(config(), library, start=gine)


def test_molecules_without_positions_are_left_out_of_3d(
    write_library: WriteLibrary, tmp_path: Path
) -> None:
    targets = np.arange(len(SMILES), dtype=float)[:, None]
    made = write_library(tmp_path / "some", SMILES, targets=targets)
    placed = np.ones(len(SMILES), dtype=bool)
    placed[[0, 7, 9, 20]] = False
    np.save(made.folder / "placed.npy", placed)
    made = MoleculeLibrary.load(made.folder)
    settings = config(
        modality="3d", encoder=MoleculeEncoderConfig(kind="schnet", d_model=16, layers=1)
    )
    problem = property_problem(settings, made)
    assert problem.model.notes == ("4 molecules without 3D coordinates are left out",)
    frame, _ = evaluate_property(problem, settings, problem.model.state_dict(), n_resamples=2)
    assert not {0, 7, 9, 20} & ({*problem.rows.tolist()} | {*frame["row"].tolist()})
    everything = property_problem(config(modality="2d"), made)
    assert len(everything.rows) > len(problem.rows)
