"""Tables of several models beside the paper."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medrec.evaluation.significance import holm
from medrec.properties.finetune import MEAN, SD_UNIT
from medrec.properties.metrics import mae, paired_difference, roc_auc
from medrec.properties.paper_rows import MOLECULENET_TABLE_3, QM8_TABLE_8, QM9_TABLE_1
from medrec.properties.tables import (
    OURS,
    PAPER,
    as_text,
    beside_paper,
    difference_table,
    learning_curves,
    result_table,
)
from quantum.base import InputError

N = 60


def summary(alpha: float, gap: float) -> pd.DataFrame:
    rows = [
        ("alpha", "a0^3", "mae", alpha), ("gap", "meV", "mae", gap), (MEAN, SD_UNIT, "mae", 0.1),
        ("alpha", "a0^3", "rmse", 2 * alpha), ("gap", "meV", "rmse", 2 * gap),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["target", "unit", "metric", "value"])


def mean_summary(value: float, metric: str, unit: str) -> pd.DataFrame:
    rows = [("a", unit, metric, 0.0), (MEAN, SD_UNIT, metric, 9.0), (MEAN, unit, metric, value)]
    return pd.DataFrame(rows, columns=["target", "unit", "metric", "value"])


def predictions(shift: float, seed: int = 0, classes: bool = False) -> pd.DataFrame:
    """Two targets of N molecules with the same labels whatever the shift; rows in any order."""
    labels = np.random.default_rng(0).normal(size=(N, 2)) * [1.0, 50.0]
    labels[::7, 1] = np.nan
    if classes:
        labels = np.where(np.isnan(labels), np.nan, labels > 0)
    noise = np.random.default_rng(seed).normal(size=(N, 2)) * [1.0, 50.0]
    return pd.DataFrame(
        {
            "row": np.repeat(np.arange(N), 2) + 100,
            "identifier": "m",
            "target": ["b", "a"] * N,
            "value": labels.ravel(),
            "prediction": (np.nan_to_num(labels) + (1 + shift) * noise).ravel(),
        }
    ).sample(frac=1.0, random_state=seed)


def matrix(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame.sort_values(["row", "target"])[column].to_numpy().reshape(N, 2)


# --------------------------------------------------------------------------- results


def test_results_are_means_and_deviations_over_seeds() -> None:
    runs = {"ours": [summary(0.05, 40), summary(0.07, 42)], "plain": [summary(0.1, 50)]}
    table = result_table(runs).set_index(["model", "column"])
    assert len(table) == 4
    assert table.loc[("ours", "alpha"), "value"] == pytest.approx(0.06)
    assert table.loc[("ours", "gap"), "spread"] == pytest.approx(np.std([40, 42], ddof=1))
    assert np.isnan(table.loc[("plain", "gap"), "spread"])
    assert table["n_runs"].tolist() == [2, 2, 1, 1]
    assert result_table(runs, "rmse")["value"].tolist() == pytest.approx([0.12, 82, 0.2, 100])
    with pytest.raises(InputError, match="model ours has no roc_auc"):
        result_table(runs, "roc_auc")


def test_paper_rows_come_after_ours_in_the_same_units() -> None:
    table = beside_paper(result_table({"ours": [summary(0.05, 40)]}), QM9_TABLE_1)
    assert set(table["column"]) == {"alpha", "gap"}
    assert table["source"].tolist() == [OURS] * 2 + [PAPER] * 2 * len(QM9_TABLE_1.rows)
    best = table[(table["model"] == "MolInteract, L_All") & (table["column"] == "gap")]
    assert best["value"].tolist() == [35.58]
    text = as_text(table).splitlines()
    assert text[0].split() == ["alpha", "[a0^3]", "gap", "[meV]"]
    assert text[1].split() == ["ours", "0.05000", "40.00"]
    assert text[-1].split() == ["MolInteract,", "L_All", "(paper)", "0.04700", "35.58"]


def test_other_units_are_not_put_beside_the_paper() -> None:
    wrong = summary(0.05, 0.04).assign(unit=["a0^3", "eV", SD_UNIT, "a0^3", "eV"])
    with pytest.raises(InputError, match="gap of model ours is in 'eV'"):
        beside_paper(result_table({"ours": [wrong]}), QM9_TABLE_1)


def test_areas_become_per_cent_and_data_sets_become_columns() -> None:
    runs = [mean_summary(value, "roc_auc", "") for value in (0.70, 0.72)]
    table = pd.concat(
        [
            result_table({"ours": runs}, "roc_auc", dataset="bbbp"),
            result_table({"ours": runs[:1]}, "roc_auc", dataset="bace"),
        ]
    )
    found = beside_paper(table, MOLECULENET_TABLE_3)
    ours = found[found["source"] == OURS]
    assert ours["value"].tolist() == pytest.approx([71.0, 70.0])
    assert ours["spread"].iloc[0] == pytest.approx(100 * np.std([0.70, 0.72], ddof=1))
    assert set(found["unit"]) == {"%"}
    assert table["value"].max() < 1
    assert "71.00 ± 1.4" in as_text(found)
    assert "68.50 ± 1.3" in as_text(found)


def test_the_mean_of_qm8_stands_beside_the_papers() -> None:
    table = result_table({"ours": [mean_summary(0.016, "mae", "Hartree")]}, dataset="qm8")
    found = beside_paper(table, QM8_TABLE_8)
    assert found["value"].iloc[0] == 0.016
    assert (found["source"] == PAPER).sum() == len(QM8_TABLE_8.rows)


# --------------------------------------------------------------------------- differences


def test_differences_are_paired_and_corrected() -> None:
    runs = {
        "base": [predictions(0.0, 1), predictions(0.0, 2)],
        "worse": [predictions(1.0, 1), predictions(1.0, 2)],
        "same": [predictions(0.0, 2), predictions(0.0, 1)],
    }
    table = difference_table(runs, "base", n_resamples=200)
    assert table["model"].tolist() == ["worse"] * 3 + ["same"] * 3
    assert table["target"].tolist() == ["a", "b", MEAN] * 2
    labels = matrix(runs["base"][0], "value")
    errors = {
        name: np.mean([mae(labels, matrix(run, "prediction")) for run in found], axis=0)
        for name, found in runs.items()
    }
    gap = errors["worse"] - errors["base"]
    assert table["difference"].tolist()[:2] == pytest.approx(gap.tolist())
    scale = np.nanstd(labels, axis=0)
    assert table["difference"].iloc[2] == pytest.approx((gap / scale).mean())
    worse, same = table.iloc[:3], table.iloc[3:]
    assert (worse["low"] > 0).all()
    assert (worse["p_holm"] < 1e-3).all()
    assert (same[["difference", "low", "high"]].abs() < 1e-12).all(axis=None)
    assert (same["p_holm"] == 1).all()
    targets = table[table["target"] != MEAN]
    np.testing.assert_allclose(targets["p_holm"], holm(targets["p"].to_numpy()))
    means = table[table["target"] == MEAN]
    np.testing.assert_allclose(means["p_holm"], holm(means["p"].to_numpy()))
    assert (targets["p_holm"] > targets["p"]).any()


def test_areas_are_compared_without_a_scale() -> None:
    runs = {"base": [predictions(0.0, 1, True)], "worse": [predictions(2.0, 1, True)]}
    table = difference_table(runs, "base", "roc_auc", n_resamples=100, seed=4)
    labels = matrix(runs["base"][0], "value")
    pair = [[matrix(runs[name][0], "prediction")] for name in ("worse", "base")]
    expected = paired_difference("roc_auc", labels, *pair, n_resamples=100, seed=4)
    areas = [roc_auc(labels, side[0]) for side in pair]
    assert table["difference"].iloc[2] == pytest.approx((areas[0] - areas[1]).mean())
    np.testing.assert_array_equal(table["low"], expected.low)
    np.testing.assert_array_equal(table["p"], expected.p)


def test_models_on_other_molecules_are_not_compared() -> None:
    base = predictions(0.0)
    for other, what in (
        (base.assign(row=base["row"] + 1), "other molecules"),
        (base.assign(value=base["value"] + 1), "other molecules"),
        (base.assign(target=base["target"] + "x"), "other molecules"),
        (base[base["row"] != 105], r"\(59, 2\) and \(60, 2\)"),
    ):
        with pytest.raises(InputError, match=what):
            difference_table({"base": [base], "other": [other]}, "base")
        with pytest.raises(InputError, match="runs of model base"):
            difference_table({"base": [base, other]}, "base")
    with pytest.raises(InputError, match="no model 'bse'; there is: base"):
        difference_table({"base": [base]}, "bse")
    with pytest.raises(InputError, match="nothing to compare base with"):
        difference_table({"base": [base]}, "base")


# --------------------------------------------------------------------------- curves


def test_curves_are_means_over_runs_epoch_by_epoch() -> None:
    first = pd.DataFrame(
        {"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.0], "valid_mae": [1.0, 0.5, 0.2]}
    )
    second = pd.DataFrame({"epoch": [0, 1], "loss": [5.0, 4.0], "lr": [0.1, 0.1]})
    table = learning_curves({"ours": [first, second], "other": [second]}, None)
    loss = table[(table["model"] == "ours") & (table["measure"] == "loss")]
    assert loss["value"].tolist() == [4.0, 3.0, 1.0]
    assert loss["n_runs"].tolist() == [2, 2, 1]
    assert loss["spread"].iloc[0] == pytest.approx(np.std([3, 5], ddof=1))
    assert set(table.loc[table["model"] == "other", "measure"]) == {"loss", "lr"}
    only = learning_curves({"ours": [first, second]}, ["valid_mae"])
    assert only["value"].tolist() == [1.0, 0.5, 0.2]
    assert (only["n_runs"] == 1).all()
