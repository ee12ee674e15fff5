"""Runs: training glued to its folder, resumed, evaluated once, reloaded, compared, recommended."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from medrec import training
from medrec.config import TrainConfig
from medrec.evaluation.bootstrap import bootstrap_intervals, legacy_bootstrap
from medrec.evaluation.compare import compare_runs, evaluation_table
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.metrics import summarise
from medrec.fitting import build_learning_data
from medrec.models import build_model
from medrec.models.molerec import MoleRec
from medrec.molecules.encoders_2d import GINEncoder
from medrec.recommend import match_code, recommend
from medrec.runs import Home
from medrec.training import load_predictor, run_training
from quantum.base import InputError, ResourceError

MOLEREC = {
    "name": "molerec",
    "model": {
        "name": "molerec",
        "d_model": 16,
        "representation": {"layers": 2, "dropout": 0.1},
    },
    "optim": {"epochs": 4, "lr": 5e-3, "patience": 10},
}


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({**MOLEREC, **changes})


def baseline(name: str) -> TrainConfig:
    return TrainConfig.model_validate({"name": name, "model": {"name": name}})


@pytest.fixture
def home(tmp_path, synthetic) -> Home:
    (tmp_path / "cohorts").symlink_to(synthetic[0].cohorts)
    return Home(tmp_path)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not(home, synthetic, tmp_path, monkeypatch):
    _, cohort = synthetic
    whole = run_training(config(), cohort, Home(tmp_path / "other"))

    def interrupt(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(config(), cohort, home, on_epoch=interrupt)
    seen: list[int] = []
    run = run_training(config(), cohort, home, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [2, 3]
    assert run.metrics()["epoch"].tolist() == [0, 1, 2, 3]
    ours, theirs = (r.load_checkpoint("best")["model"] for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.report()["test"] == whole.report()["test"]
    # finished work is found, not repeated
    monkeypatch.setattr(training, "build_learning_data", None)
    assert run_training(config(), cohort, home).folder == run.folder


def test_rows_reproduce_the_report_and_a_reloaded_model_the_rows(home, synthetic):
    _, cohort = synthetic
    run = run_training(config(), cohort, home)
    rows = pd.read_parquet(run.folder / "visits.parquet")
    summary = summarise(rows)
    assert run.report()["test"]["jaccard"] == pytest.approx(summary["jaccard"])
    test = cohort.split(0).test
    assert sorted(rows["patient"].unique()) == sorted(test)
    loaded = load_predictor(run, home)
    data = build_learning_data(cohort, 0, None, molecules=True)
    batch = data.dataset.collate([int(test[0])])
    own = rows[rows["patient"] == test[0]]
    n_selected = loaded.model.predict(batch).selected[0].sum(dim=-1).tolist()
    assert n_selected == own["n_selected"].tolist()


def test_learning_beats_counting_where_structure_is_planted(home, synthetic):
    _, cohort = synthetic
    learned = run_training(
        config(optim={"epochs": 40, "lr": 1e-2, "patience": 40}, loss={"ddi_target": 0.5}),
        cohort,
        home,
    )
    runs = [run_training(baseline(n), cohort, home) for n in ("topk", "logistic_regression")]
    scores = {r.report()["model"]: r.report()["test"]["jaccard"] for r in [learned, *runs]}
    assert scores["logistic_regression"] > scores["topk"] + 0.05
    assert scores["molerec"] > scores["topk"] + 0.05


def test_comparison_states_what_its_numbers_rest_on(home, synthetic):
    _, cohort = synthetic
    runs = [run_training(baseline(n), cohort, home) for n in ("topk", "copy_last")]
    comparison = compare_runs(runs, cohort)
    assert comparison.header["preset"] == "strict"
    assert "support no claim" in comparison.header["caution"]
    row = comparison.table.iloc[1]
    rows = pd.read_parquet(runs[1].folder / "visits.parquet")
    assert (row["jaccard_low"], row["jaccard_high"]) == bootstrap_intervals(rows)["jaccard"]
    assert comparison.table.iloc[0]["jaccard_difference"] == 0.0
    assert len(comparison.display()) == 2
    assert set(evaluation_table(runs[0])["metric"]) >= {"jaccard", "ddi_rate_chance", "ece"}
    other = baseline("topk").model_copy(update={"split": 1})
    with pytest.raises(InputError, match="no split in common"):
        compare_runs([runs[1], run_training(other, cohort, home)], cohort)
    with pytest.raises(InputError, match="reference"):
        compare_runs(runs, cohort, reference="nothing")
    assert compare_runs(runs, cohort, reference="copy_last").reference == runs[1].name


def test_a_comparison_wants_one_reference_and_the_runs_own_cohort(home, synthetic):
    _, cohort = synthetic
    again = baseline("topk").model_copy(update={"name": "topk_again"})
    runs = [run_training(item, cohort, home) for item in (again, baseline("topk"))]
    # a name without its digest is that run, not the first that begins so
    assert compare_runs(runs, cohort, reference="topk").reference == runs[1].name
    with pytest.raises(InputError, match="fits 2 runs"):
        compare_runs(runs, cohort, reference="top")
    stranger = dataclasses.replace(cohort, record={**cohort.record, "digest": "0" * 64})
    with pytest.raises(InputError, match="another cohort"):
        compare_runs(runs, stranger)


def test_nothing_to_score_is_an_error_and_not_a_division_by_zero(home, synthetic):
    _, cohort = synthetic
    run = run_training(baseline("topk"), cohort, home)
    rows = pd.read_parquet(run.folder / "visits.parquet")
    for function in (bootstrap_intervals, legacy_bootstrap):
        with pytest.raises(InputError, match="nothing to resample"):
            function(rows.iloc[:0])
    with pytest.raises(InputError, match="no visit to evaluate"):
        evaluate(lambda batch: None, [], np.zeros((2, 2)))


@pytest.mark.parametrize("name", ["topk", "copy_last", "copy_frequency", "logistic_regression"])
def test_yardsticks_answer_on_the_batchs_device(name, synthetic):
    _, cohort = synthetic
    data = build_learning_data(cohort, 0, None, molecules=False)
    model = build_model(baseline(name), data.context)
    patients = data.split.train[:8]
    model.fit(data.dataset, patients)
    (batch,) = data.dataset.batches(patients, 8)
    # "meta" stands for a device that is not the CPU: mixing it with CPU tensors fails the same way
    prediction = model.predict(batch.to("meta"))
    assert prediction.probs.device.type == "meta"
    assert prediction.selected.shape == batch.target.shape


def test_pretrained_weights_travel_with_their_buffers(synthetic):
    _, cohort = synthetic
    data = build_learning_data(cohort, 0, None, molecules=True)
    model = build_model(config(), data.context)
    assert isinstance(model, MoleRec)
    source = GINEncoder(16, 2, 0.1)
    source(data.context.molecules.molecules)
    sizes = {"d_model": 16, "gin_layers": 2}
    model.load_pretrained({"gin_molecule": source.state_dict(), "encoder": sizes})
    for name, value in source.state_dict().items():
        assert torch.equal(model.representation.molecule_encoder.gin.state_dict()[name], value), (
            name
        )
    wrong = {"d_model": 32, "gin_layers": 2}
    with pytest.raises(InputError, match=r"32.*16"):
        model.load_pretrained({"gin_molecule": source.state_dict(), "encoder": wrong})


def test_a_device_that_is_not_there_is_an_error(home, synthetic):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(ResourceError, match="cuda"):
        run_training(config(device="cuda"), synthetic[1], home)


def test_elf_without_features_is_refused(home, synthetic):
    wanted = config(model={**MOLEREC["model"], "representation": {"kind": "gin_elf"}})
    with pytest.raises(InputError, match="feature table"):
        run_training(wanted, synthetic[1], home)


# --------------------------------------------------------------------------- recommend


def test_recommend_ranks_names_and_warns(home, synthetic):
    _, cohort = synthetic
    run = run_training(baseline("logistic_regression"), cohort, home)
    visits = cohort.visits[cohort.visits["patient"] == 0]
    first = visits.iloc[0]
    dotted = [code.replace("icd9:", "") for code in first["diagnoses"]]
    document = {
        "visits": [
            {"diagnoses": [*dotted, "Z99.99"], "procedures": first["procedures"], "drugs": []}
        ]
    }
    result = recommend(run, home, document)
    probabilities = [item["probability"] for item in result["drugs"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(item["name"] for item in result["drugs"])
    assert len(result["warnings"]) == 1
    assert "Z99.99" in result["warnings"][0]
    chosen = {item["atc"] for item in result["drugs"] if item["selected"]}
    assert all({p["atc_a"], p["atc_b"]} <= chosen for p in result["interactions"])
    assert "not for clinical decisions" in result["caution"]
    # what was given at the visit itself must not matter
    document["visits"][0]["drugs"] = list(first["drugs"])
    assert recommend(run, home, document)["drugs"] == result["drugs"]


@pytest.mark.parametrize(
    "document",
    [[], {}, {"visits": []}, {"visits": [{"diagnosis": []}]}, {"visits": [{"drugs": [1]}]}, 3],
)
def test_unusable_documents_say_what_was_expected(home, synthetic, document):
    run = run_training(baseline("topk"), synthetic[1], home)
    with pytest.raises(InputError, match=r"expected \{\"visits\""):
        recommend(run, home, document)


def test_codes_are_matched_in_the_spellings_people_use(synthetic):
    vocabulary = synthetic[1].vocabularies(0).diagnoses
    code = vocabulary.codes[0]
    bare = code.removeprefix("icd9:")
    assert match_code(code, vocabulary) == (code, "")
    assert match_code(bare, vocabulary) == (code, "")
    assert match_code(f"{bare[:3]}.{bare[3:]}", vocabulary) == (code, "")
    assert match_code("nonsense", vocabulary) == (None, "unknown")
