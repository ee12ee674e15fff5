"""Comparison of runs: groups over seeds and splits, paired tests, the best possible, exports."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon
from typer.testing import CliRunner

from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.evaluation import describe
from medrec.evaluation.compare import compare_runs
from medrec.evaluation.context import TestPart, ddi_rate_by_frequency, optimum_rows
from medrec.evaluation.export import escape_latex, to_csv, to_latex
from medrec.evaluation.groups import seed_and_split_spread
from medrec.evaluation.metrics import ddi_rate_chance, summarise, visit_rows
from medrec.evaluation.significance import holm, patient_differences, wilcoxon_p
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.runs import Home, Run
from orchestration.cli import app
from quantum.base import InputError


@pytest.fixture
def home(tmp_path, synthetic) -> Home:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.cohorts.symlink_to(synthetic[0].cohorts)
    return home


@pytest.fixture
def cohort(synthetic) -> Cohort:
    return synthetic[1]


def guess(cohort: Cohort, split: int, skill: float, seed: int) -> pd.DataFrame:
    """Rows of a predictor that knows each entry with probability ``skill``."""
    rng = np.random.default_rng([seed, split])
    part = TestPart.of(cohort, split)
    known = rng.random(part.target.shape) < skill
    probs = np.where(known, part.target, rng.random(part.target.shape)) * 0.9 + 0.05
    ddi, severity = ddi_matrix(cohort, part.drugs), severity_matrix(cohort, part.drugs)
    n_unseen = np.zeros(len(probs), int)
    return visit_rows(
        part.target, probs >= 0.5, probs, ddi, part.patient, part.visit, n_unseen, severity
    )


def make_run(home, cohort, name, skill, *, split=0, seed=0, model="topk", **report) -> Run:
    """A finished run with made-up rows."""
    settings = {"name": name, "model": {"name": model}, "split": split, "seed": seed}
    config = TrainConfig.model_validate(settings)
    run = Run.open(home, "train", name, config, {"cohort": cohort.digest})
    rows = guess(cohort, split, skill, seed)
    rows.to_parquet(run.folder / "visits.parquet", index=False)
    with run.recording():
        run.finish(
            {
                "model": model,
                "cohort": cohort.digest,
                "preset": "strict",
                "split": split,
                "split_digest": cohort.split(split).digest,
                "ddi_rate_chance": 0.1,
                "threshold": 0.5,
                "n_parameters": 3,
                "seconds": 1.0,
                **report,
            }
        )
    return run


def rows_of(run: Run) -> pd.DataFrame:
    return pd.read_parquet(run.folder / "visits.parquet")


# --------------------------------------------------------------------------- statistics


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert len(holm([])) == 0


def test_wilcoxon_is_scipys_and_survives_equal_models():
    differences = np.array([0.1, -0.2, 0.3, 0.45, 0.5, 0.0, 0.7])
    assert wilcoxon_p(differences) == wilcoxon(differences[differences != 0]).pvalue
    assert wilcoxon_p(np.zeros(5)) == 1.0
    assert wilcoxon_p(np.full(5, 1e-17)) == 1.0  # rounding is no difference
    assert wilcoxon_p(np.array([])) == 1.0


def test_the_test_holds_its_level_and_finds_a_shift():
    rng = np.random.default_rng(0)
    null = [wilcoxon_p(rng.normal(size=80)) < 0.05 for _ in range(300)]
    assert 0.02 <= np.mean(null) <= 0.09
    assert wilcoxon_p(rng.normal(0.8, 1.0, size=80)) < 1e-4


def test_spread_over_seeds_and_splits_by_hand():
    seeds, splits = seed_and_split_spread({0: [1.0, 3.0], 1: [4.0, 4.0, 7.0]})
    # squares within: 2 + 6 = 8 with 1 + 2 degrees of freedom; means 2 and 5
    assert seeds == pytest.approx(np.sqrt(8 / 3))
    assert splits == pytest.approx(np.sqrt(4.5))
    assert all(np.isnan(seed_and_split_spread({0: [1.0]})))


def test_a_patient_of_two_splits_is_one_difference():
    def rows(values: dict[int, int]) -> pd.DataFrame:
        hits = np.array(list(values.values()), bool)[:, None]
        patients, zeros = np.array(list(values)), np.zeros(len(values), int)
        ddi = np.zeros((1, 1))
        return visit_rows(np.ones_like(hits), hits, hits * 1.0, ddi, patients, zeros, zeros)

    ours = [[rows({1: 1, 2: 1}), rows({1: 0, 2: 1})], [rows({2: 1, 5: 0})]]
    theirs = [[rows({1: 0, 2: 0})], [rows({2: 1, 5: 1})]]
    # patient 1: mean of two seeds 1/2; patient 2: (1 + 0) / 2 over splits; patient 5: -1
    np.testing.assert_allclose(patient_differences(ours, theirs, "jaccard"), [0.5, 0.5, -1.0])


# --------------------------------------------------------------------------- groups


def test_seeds_and_splits_are_one_row_with_their_spread(home, cohort):
    runs = [
        make_run(home, cohort, "good", 0.8, split=split, seed=seed, model="copy_last")
        for split in (0, 1)
        for seed in (1, 2, 3)
    ]
    runs += [make_run(home, cohort, "base", 0.3, split=split) for split in (0, 1, 2)]
    comparison = compare_runs(runs, cohort, reference="base")
    assert comparison.table["run"].tolist() == ["good", "base"]
    row = comparison.table.iloc[0]
    assert (row["n_runs"], row["n_seeds"], row["n_splits"]) == (6, 3, 2)
    assert row["splits_compared"] == "0, 1"
    by_run = np.array([summarise(rows_of(run))["jaccard"] for run in runs])
    assert row["jaccard"] == pytest.approx(by_run[:6].mean())
    assert row["jaccard_sd_seeds"] == pytest.approx(
        np.sqrt(np.mean([by_run[:3].var(ddof=1), by_run[3:6].var(ddof=1)]))
    )
    assert row["jaccard_sd_splits"] == pytest.approx(
        abs(by_run[:3].mean() - by_run[3:6].mean()) / 2**0.5
    )
    # the difference is over splits that both have, the value of the reference over its three
    assert row["jaccard_difference"] == pytest.approx(by_run[:6].mean() - by_run[6:8].mean())
    assert comparison.table.iloc[1]["jaccard"] == pytest.approx(by_run[6:].mean())
    assert row["jaccard_difference_low"] > 0
    assert row["jaccard_p_holm"] == row["jaccard_p"] < 0.01
    assert np.isnan(comparison.table.iloc[1]["jaccard_p"])
    assert len(comparison.facts["split_digests"]) == 3
    assert "± seed\n± split" in comparison.display()


def test_other_settings_are_other_rows_and_a_run_counts_once(home, cohort):
    first = make_run(home, cohort, "base", 0.3)
    again = make_run(home, cohort, "base", 0.3, model="copy_last")
    other = make_run(home, cohort, "base", 0.5, model="copy_last", seed=1)
    table = compare_runs([first, first, again, other], cohort).table
    assert table["run"].tolist() == [first.name, "base"]
    assert table["n_runs"].tolist() == [1, 2]
    with pytest.raises(InputError, match="fits 2 runs"):
        compare_runs([first, again, other], cohort, reference="base")


def test_an_interval_over_splits_knows_that_test_parts_overlap(home, cohort, monkeypatch):
    """Five times the same test part is one test part: the interval must not shrink."""
    monkeypatch.setattr(Cohort, "oracle", property(lambda self: None))  # it adds its own patients
    one = make_run(home, cohort, "one", 0.5)
    rows = rows_of(one)
    runs = []
    for split in range(5):
        run = make_run(
            home, cohort, "five", 0.5, split=split, split_digest="same", model="copy_last"
        )
        rows.to_parquet(run.folder / "visits.parquet", index=False)
        runs.append(run)
    single = compare_runs([one], cohort).table.iloc[0]
    many = compare_runs(runs, cohort).table.iloc[0]
    assert many["jaccard"] == pytest.approx(single["jaccard"])
    for end in ("low", "high"):
        assert many[f"jaccard_{end}"] == pytest.approx(single[f"jaccard_{end}"])
    assert many["jaccard_sd_splits"] == pytest.approx(0.0)


def test_runs_that_score_other_visits_are_refused(home, cohort):
    first, second = (make_run(home, cohort, name, 0.5) for name in ("a", "b"))
    rows_of(second).iloc[1:].to_parquet(second.folder / "visits.parquet", index=False)
    with pytest.raises(InputError, match="different visits"):
        compare_runs([first, second], cohort)
    changed = make_run(home, cohort, "c", 0.5, split_digest="other")
    with pytest.raises(InputError, match="split_digest for split 0"):
        compare_runs([first, changed], cohort)
    with pytest.raises(InputError, match="no run to compare"):
        compare_runs([], cohort)


# --------------------------------------------------------------------------- context


def test_chance_at_equal_set_size_and_at_the_drugs_frequencies():
    rng = np.random.default_rng(0)
    ddi = np.triu(rng.random((12, 12)) < 0.3, 1)
    ddi = ddi | ddi.T
    sizes, pairs, hits = (2, 5, 11), 0.0, 0.0
    for size in sizes:
        for chosen in itertools.islice(itertools.combinations(range(12), size), 10**6):
            hits += ddi[np.ix_(chosen, chosen)].sum() / 2
            pairs += size * (size - 1) / 2
    assert hits / pairs == pytest.approx(ddi_rate_chance(ddi))
    frequency = rng.uniform(0.05, 0.9, size=12)
    target = rng.random((40_000, 12)) < frequency
    rows = visit_rows(
        target, target, target * 1.0, ddi, np.arange(40_000), *np.zeros((2, 40_000), int)
    )
    assert ddi_rate_by_frequency(target, ddi) == pytest.approx(
        summarise(rows)["ddi_rate_true"], abs=3e-3
    )
    assert ddi_rate_by_frequency(np.zeros((3, 12), bool), ddi) == 0.0


@pytest.fixture
def planted(monkeypatch, cohort) -> np.ndarray:
    """Planted probabilities that fit the cohort's own visits better than chance."""
    classes = list(cohort.drugs["atc"])
    given = np.array([[atc in drugs for atc in classes] for drugs in cohort.visits["drugs"]])
    oracle = (0.05 + 0.8 * given).astype(np.float32)
    monkeypatch.setattr(Cohort, "oracle", property(lambda self: oracle))
    return oracle


def test_distance_from_the_best_possible(home, cohort, planted):
    runs = [make_run(home, cohort, "a", 0.5), make_run(home, cohort, "b", 0.2)]
    comparison = compare_runs(runs, cohort)
    best = optimum_rows(cohort, 0)
    assert best[["patient", "visit"]].equals(rows_of(runs[0])[["patient", "visit"]])
    optimum = summarise(best)["jaccard"]
    assert optimum == pytest.approx(1.0)  # .85 and .05: the sets are the truth
    assert 0.6 < comparison.facts["jaccard_optimum_expected"] < 0.95
    for run, row in zip(runs, comparison.table.to_dict("records"), strict=True):
        assert row["jaccard_distance"] == pytest.approx(
            optimum - summarise(rows_of(run))["jaccard"]
        )
        assert row["jaccard_distance_low"] < row["jaccard_distance"] < row["jaccard_distance_high"]
    assert "best possible Jaccard" in comparison.header
    assert "to best" in comparison.display()


def test_without_planted_probabilities_there_is_no_distance(home, cohort, monkeypatch):
    monkeypatch.setattr(Cohort, "oracle", property(lambda self: None))
    comparison = compare_runs([make_run(home, cohort, "a", 0.5)], cohort)
    assert optimum_rows(cohort, 0) is None
    assert "jaccard_distance" not in comparison.table
    assert "best possible Jaccard" not in comparison.header


def test_the_best_sets_of_a_synthetic_cohort_get_about_what_they_expect(cohort):
    assert cohort.oracle is not None
    rows = pd.concat([optimum_rows(cohort, split) for split in range(cohort.n_splits)])
    jaccard = rows["n_hit"] / (rows["n_true"] + rows["n_selected"] - rows["n_hit"])
    gap = jaccard - rows["expected_jaccard"]
    per_patient = gap.groupby(rows["patient"].to_numpy()).mean()
    assert abs(per_patient.mean()) < 4 * per_patient.std() / np.sqrt(len(per_patient))
    truth = np.array([len(drugs) for drugs in cohort.visits["drugs"]])
    assert rows["n_true"].between(truth.min(), truth.max()).all()


# --------------------------------------------------------------------------- exports


def test_csv_has_every_column_and_what_the_numbers_rest_on(home, cohort, planted):
    runs = [make_run(home, cohort, "a", 0.5), make_run(home, cohort, "b", 0.2)]
    comparison = compare_runs(runs, cohort)
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(lines) == 2
    assert set(comparison.table.columns) - {"jaccard_optimum"} <= set(lines[0])
    for line in lines:
        assert line["preset"] == "strict"
        assert line["split_digests"] == f"0:{cohort.split(0).digest}"
        assert int(line["n_patients"]) == cohort.n_patients
        assert float(line["ddi_rate_chance"]) == 0.1
        assert float(line["ddi_rate_true"]) == comparison.facts["ddi_rate_true"]
    assert float(lines[1]["jaccard"]) == comparison.table["jaccard"][1]


def test_latex_is_escaped_and_complete(home, cohort, planted):
    runs = [
        make_run(home, cohort, "a_b", 0.5),
        make_run(home, cohort, "c", 0.2, model="copy_last", threshold=None),
    ]
    comparison = compare_runs(runs, cohort)
    text = to_latex(comparison, bold_best=True)
    assert text.count(r"\\") == 3
    (caption,) = (line for line in text.splitlines() if line.startswith(r"\caption"))
    for part in ("strict", cohort.split(0).digest[:8], "10,000", "0.1000", "no claim", "Bold"):
        assert part in caption
    assert r"a\_b" in caption
    assert r"95 \%" in caption
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert [row.count("&") for row in body.splitlines()[1:]] == [8, 8]
    assert body.count(r"\textbf") == 3
    assert r"\textbf" not in to_latex(comparison)
    assert escape_latex(r"a\b{c}$5%_#&~^<>") == (
        r"a\textbackslash{}b\{c\}\$5\%\_\#\&\textasciitilde{}\textasciicircum{}"
        r"\textless{}\textgreater{}"
    )


def test_commands_print_json_and_write_files(home, cohort, tmp_path):
    runs = [
        make_run(home, cohort, "a", skill, seed=seed, model=model)
        for model, skill in (("topk", 0.2), ("copy_last", 0.6))
        for seed in (0, 1)
    ]
    files = ["--csv", str(tmp_path / "t.csv"), "--latex", str(tmp_path / "t.tex")]
    place = ["--home", str(home.root), "--json"]
    names = [run.name for run in runs]
    done = CliRunner().invoke(app, ["compare", *names, *files, *place], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert [row["n_runs"] for row in document["rows"]] == [2, 2]
    assert document["rows"][0]["jaccard_p"] is None
    assert document["facts"]["preset"] == "strict"
    assert (tmp_path / "t.csv").read_text().count("\n") == 3
    assert r"\toprule" in (tmp_path / "t.tex").read_text()
    figure = tmp_path / "calibration.html"
    arguments = ["evaluate", names[0], "--figure", str(figure), *place]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["threshold"] == 0.5
    assert len(document["reliability"]) == 10
    assert [row["severity"][0] for row in document["ddi_by_severity"]] == list("1234")
    assert "share of true drugs" in figure.read_text()


# --------------------------------------------------------------------------- descriptions


def test_descriptions_by_hand():
    target = np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool)
    selected = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    probs = np.array([[0.95, 0.95, 0.55, 0.05], [0.05, 0.05, 0.05, 0.05]])
    severity = np.array([[0, 4, 1, 0], [4, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    rows = visit_rows(
        target, selected, probs, severity >= 3, np.array([0, 1]), *np.zeros((2, 2), int), severity
    )
    table = describe.reliability(rows).set_index("from")
    assert table.loc[0.0, "n"] == 5
    assert table.loc[0.0, "observed"] == pytest.approx(1 / 5)
    assert table.loc[0.9, "predicted"] == pytest.approx(0.95)
    assert np.isnan(table.loc[0.3, "observed"])
    sizes = describe.set_sizes(rows).set_index("sets")
    assert sizes.loc["recommended", ["mean", "sd", "q50", "max", "empty"]].tolist() == (
        pytest.approx([1.5, np.sqrt(4.5), 1.5, 3.0, 0.5])
    )
    assert sizes.loc["true", "mean"] == pytest.approx(1.5)
    names = dict.fromkeys(range(5), "x")
    rates = describe.ddi_by_severity(rows, names).set_index("severity")
    assert rates.loc["4 x", "rate"] == pytest.approx(1 / 3)
    assert rates.loc["1 x", "rate"] == pytest.approx(1 / 3)
    assert rates.loc["2 x", "rate"] == 0.0
    assert rates.loc["4 x", "rate_true"] == pytest.approx(1.0)
    assert summarise(rows)["ddi_rate"] == pytest.approx(1 / 3)
    ungraded = visit_rows(
        target, selected, probs, severity, np.array([0, 1]), *np.zeros((2, 2), int)
    )
    assert describe.ddi_by_severity(ungraded, names).empty


def test_old_definitions_have_their_names(cohort):
    rows = guess(cohort, 0, 0.5, 0)
    table = describe.legacy_definitions(rows).set_index("definition")
    summary = summarise(rows)
    pyhealth, later = (table.filter(like=name, axis=0).iloc[0] for name in ("pyhealth", "retain"))
    assert pyhealth["jaccard"] == summary["jaccard_visit_mean"]
    assert later["f1"] == summary["f1_later"]
    drawn = table.filter(like="ten draws", axis=0)
    assert (drawn["jaccard_sd"] > 0).all()
    assert drawn["jaccard"].nunique() == 2
