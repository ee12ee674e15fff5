"""The library's front door: light import, scikit-learn's manners, the same numbers as the runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import medrec
from medrec.evaluation.groups import load_rows
from medrec.evaluation.metrics import summarise
from medrec.notebook import comparison_html, recommendation_html
from quantum.base import ConfigError, InputError

SETTINGS = {"model.d_model": 16, "optim.lr": 3e-3}


@pytest.fixture(scope="module")
def fitted(synthetic, tmp_path_factory: pytest.TempPathFactory) -> medrec.Recommender:
    model = medrec.Recommender(
        "retain", epochs=2, settings=SETTINGS, home=tmp_path_factory.mktemp("home")
    )
    assert model.fit(synthetic[1]) is model
    return model


@pytest.fixture(scope="module")
def counted(synthetic, fitted) -> medrec.Recommender:
    return medrec.Recommender("topk", home=fitted.home).fit(synthetic[1])


def patient_document(cohort, patient: int) -> dict:
    rows = cohort.visits[cohort.visits["patient"] == patient].sort_values("visit")
    kinds = ("diagnoses", "procedures", "drugs")
    return {"visits": [{kind: list(row[kind]) for kind in kinds} for _, row in rows.iterrows()]}


def known_patient(model: medrec.Recommender) -> int:
    """First test patient all of whose codes the model knows."""
    cohort = model.cohort_
    vocabularies = cohort.vocabularies()
    known = {code for kind in ("diagnoses", "procedures", "drugs")
             for code in getattr(vocabularies, kind).codes}  # fmt: skip
    for patient in cohort.split().test:
        visits = patient_document(cohort, int(patient))["visits"]
        if all(known.issuperset(codes) for visit in visits for codes in visit.values()):
            return int(patient)
    raise AssertionError("no such patient")


# --------------------------------------------------------------------------- import


def test_import_loads_nothing_heavy():
    heavy = ("torch", "pandas", "numpy", "polars", "rdkit", "pydantic", "sklearn", "plotly", "ray")
    code = (
        "import sys, medrec, quantum; dir(medrec);"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cohorts_and_feature_tables_need_no_torch(tmp_path: Path):
    code = (
        "import sys, medrec; medrec.load_cohort, medrec.Cohort, medrec.FeatureTable;"
        "print([m for m in ('torch', 'ray', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_type_checkers_see_what_runs(root: Path):
    for name in ("medrec", "quantum"):
        module = sys.modules[name] if name in sys.modules else __import__(name)
        tree = ast.parse((root / name / "__init__.py").read_text())
        seen = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing")
            for alias in node.names
        }
        assert seen == set(module.__all__) == set(module._HOMES)
        assert set(module.__all__) <= set(dir(module))
        assert all(getattr(module, item) is not None for item in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        medrec.Recomender  # noqa: B018


# --------------------------------------------------------------------------- cohorts


def test_a_cohort_is_found_by_whatever_names_it(synthetic, tmp_path: Path):
    home, cohort = synthetic
    for source in (cohort, cohort.folder, str(cohort.folder)):
        assert medrec.load_cohort(source).digest == cohort.digest
    assert medrec.load_cohort("tiny", home=home.root).digest == cohort.digest
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\nsource: {format: synthetic, n_patients: 60, n_diagnoses: 30, "
        "n_procedures: 12, n_drugs: 12}\n"
    )
    assert medrec.load_cohort(path, home=home).digest == cohort.digest


def test_a_name_that_means_nothing_is_answered_with_what_there_is(tmp_path: Path):
    with pytest.raises(InputError, match=r"did you mean 'synthetic_small'.*mimic4_demo"):
        medrec.load_cohort("synthetic_smal", home=tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'sorce'"):
        medrec.prepare({"name": "x", "sorce": {}}, home=tmp_path)


def test_without_a_home_results_end_with_the_process(tmp_path: Path):
    code = (
        "import medrec; c = medrec.prepare({'name': 'x', 'source': {'format': 'synthetic',"
        "'n_patients': 30, 'n_diagnoses': 20, 'n_procedures': 8, 'n_drugs': 8}});"
        "print(c.folder, c.folder.is_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    folder, there = done.stdout.split()
    assert there == "True"
    assert not Path(folder).exists()
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- parameters


def test_parameters_as_scikit_learn_has_them():
    model = medrec.Recommender("retain", epochs=3, settings={"optim.lr": 0.1})
    assert model.get_params()["epochs"] == 3
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert model.set_params(epochs=5, seed=1) is model
    assert (model.config().optim.epochs, model.config().seed, model.config().optim.lr) == (
        5,
        1,
        0.1,
    )
    with pytest.raises(InputError, match=r"no parameter 'epoch' \(did you mean 'epochs'"):
        model.set_params(epoch=3, seed=2)
    assert model.seed == 1
    assert repr(model).startswith("Recommender('retain', epochs=5, seed=1")


def test_a_file_and_a_configuration_are_models(root: Path):
    path = root / "configs" / "train" / "molerec.yaml"
    from_file = medrec.Recommender(path, epochs=2).config()
    assert from_file.model.representation.layers == 4
    assert from_file.optim.epochs == 2
    assert medrec.Recommender(from_file).config() == from_file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "molrec"}, "did you mean 'molerec'"),
        ({"epochs": 0}, "optim.epochs"),
        ({"settings": {"optim.lrate": 1}}, "unknown key"),
        ({"settings": {"optim.lr": object()}}, "of type object"),
        ({"model": "absent.yaml"}, "not found: absent.yaml"),
    ],
)
def test_what_cannot_be_trained_is_named(options, words):
    with pytest.raises((InputError, ConfigError), match=words):
        medrec.Recommender(**options).config()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.predict(),
        lambda model: model.predict_proba("test"),
        lambda model: model.evaluate(),
        lambda model: model.score(),
        lambda model: model.recommend([]),
        lambda model: model.history_,
        lambda model: model.classes_,
        lambda model: medrec.compare([model]),
    ],
)
def test_unfitted_models_say_so(call):
    with pytest.raises(InputError, match="not fitted"):
        call(medrec.Recommender("topk"))


# --------------------------------------------------------------------------- fit, predict


def test_a_fit_is_a_run_that_is_found_again(fitted, synthetic):
    assert fitted.run_.is_finished
    assert fitted.run_.folder.is_relative_to(fitted.home)
    assert not list(synthetic[0].runs.glob("retain*"))  # its own home, the cohort by a link
    assert (Path(fitted.home) / "cohorts" / fitted.cohort_.name).is_symlink()
    before = (fitted.run_.folder / "metrics.jsonl").stat().st_mtime_ns
    again = clone(fitted).fit(synthetic[1])
    assert again.run_.name == fitted.run_.name
    assert (again.run_.folder / "metrics.jsonl").stat().st_mtime_ns == before
    assert fitted.history_["epoch"].tolist() == [0, 1]


def test_predictions_are_those_that_were_scored(fitted):
    chosen, scores = fitted.predict("test"), fitted.predict_proba("test")
    rows = load_rows(fitted.run_).set_index(["patient", "visit"])
    assert list(chosen.columns) == list(fitted.classes_)
    assert chosen.index.equals(scores.index)
    assert sorted(chosen.index) == sorted(rows.index)
    assert chosen.sum(axis=1).loc[rows.index].tolist() == rows["n_selected"].tolist()
    assert scores.to_numpy().min() >= 0.0
    assert scores.to_numpy().max() <= 1.0
    threshold = fitted.run_.report()["threshold"]
    assert (chosen == (scores.astype(np.float32) >= np.float32(threshold))).all(axis=None)


def test_evaluation_is_that_of_the_run(fitted):
    table = fitted.evaluate().set_index("metric")
    summary = summarise(load_rows(fitted.run_))
    assert table.loc["jaccard", "value"] == summary["jaccard"]
    assert fitted.score() == summary["jaccard"]
    assert table.loc["jaccard", "low"] < summary["jaccard"] < table.loc["jaccard", "high"]
    best = fitted.run_.report()["val_jaccard"]
    validation = fitted.evaluate(part="validation").set_index("metric")
    assert validation.loc["jaccard", "value"] == pytest.approx(best, abs=1e-9)


def test_new_patients_as_documents(fitted, synthetic):
    cohort, patient = synthetic[1], known_patient(fitted)
    expected = fitted.predict_proba([patient]).to_numpy()
    document = patient_document(cohort, patient)
    for given in (document, [document]):
        np.testing.assert_allclose(fitted.predict_proba(given).to_numpy(), expected, atol=1e-6)
    document["visits"][-1]["diagnoses"] += ["SECRET-CODE"]
    with pytest.warns(UserWarning, match="1 codes are unknown") as caught:
        fitted.predict(document)
    assert "SECRET" not in str(caught[0].message)


def test_one_recommendation(fitted, synthetic):
    document = patient_document(synthetic[1], known_patient(fitted))
    found = fitted.recommend(document["visits"])
    assert list(found.drugs.columns) == ["rank", "atc", "name", "probability", "selected"]
    last = fitted.predict_proba(document).iloc[-1]
    by_code = found.drugs.set_index("atc")["probability"]
    np.testing.assert_allclose(by_code.loc[last.index], last, atol=1e-4)
    hard = fitted.recommend(document, forbid=1)
    assert len(hard.interactions) == 0
    assert list(hard.interactions.columns)[:2] == ["atc_a", "name_a"]


@pytest.mark.parametrize(
    "patients", ["everyone", [], [10**6], [-1], [0.5], [True], ["7"], [{"visits": []}], [0, {}]]
)
def test_patients_that_are_none_are_refused(fitted, patients):
    with pytest.raises(InputError, match="expected"):
        fitted.predict(patients)


def test_a_run_is_opened_by_folder_or_name(fitted):
    scores = fitted.predict_proba()
    by_folder = medrec.Recommender.load(fitted.run_.folder)
    by_name = medrec.Recommender.load("retain", home=fitted.home)
    for found in (by_folder, by_name):
        pd.testing.assert_frame_equal(found.predict_proba(), scores)
    with pytest.raises(InputError, match="no 'gamenet'"):
        medrec.Recommender.load("gamenet", home=fitted.home)


def test_another_cohort_is_a_replication(counted, tmp_path: Path):
    sizes = {"n_patients": 40, "n_diagnoses": 30, "n_procedures": 12, "n_drugs": 12}
    source = {"format": "synthetic", **sizes, "hospital": 1}
    other = medrec.prepare({"name": "other", "source": source}, home=tmp_path)
    table = counted.evaluate(other, part="all").set_index("metric")
    assert 0.0 < table.loc["jaccard", "value"] < 1.0
    assert table.loc["jaccard", "value"] != counted.score()


def test_comparison_of_models(fitted, counted):
    comparison = medrec.compare([fitted, counted.run_], reference="topk")
    assert comparison.reference == counted.run_.name
    assert set(comparison.table["model"]) == {"retain", "topk"}
    with pytest.raises(InputError, match="nothing to compare"):
        medrec.compare([])
    with pytest.raises(InputError, match="no cohort"):
        medrec.compare([counted.run_])


# --------------------------------------------------------------------------- views


def test_views_say_what_is_there_and_nothing_of_a_patient(fitted, counted, synthetic):
    cohort = synthetic[1]
    comparison = medrec.compare([counted, fitted])
    unfitted = medrec.Recommender("molerec", epochs=3)
    views = {
        "cohort": cohort._repr_html_(),
        "run": fitted.run_._repr_html_(),
        "fitted": fitted._repr_html_(),
        "unfitted": unfitted._repr_html_(),
        "comparison": comparison._repr_html_(),
    }
    assert cohort.name in views["cohort"]
    assert "at least 2 visits left" in views["cohort"]
    assert "finished" in views["run"]
    jaccard = f"{fitted.score():.4g}"
    assert jaccard in views["run"]
    assert jaccard in views["fitted"]
    assert "not fitted" in views["unfitted"]
    assert "support no claim" in views["comparison"]
    assert "reference" in views["comparison"]
    codes = set(cohort.vocabularies().diagnoses.codes)
    for name, view in views.items():
        texts = re.findall(r">([^<]+)<", view)
        assert not codes.intersection(texts), name
        assert "background" not in view
        assert len(view) < 20_000
        assert view.count("<div") == view.count("</div")
        assert view.count("<table") == view.count("</table")


def test_texts_of_data_are_escaped(fitted):
    evil = "<script>alert(1)</script>"
    drugs = pd.DataFrame(
        [[1, evil, evil, 0.5, True]], columns=["rank", "atc", "name", "probability", "selected"]
    )
    found = medrec.Recommendation(drugs, pd.DataFrame(), [evil], evil, evil)
    assert "<script>" not in recommendation_html(found)
    assert "&lt;script&gt;" in recommendation_html(found)
    comparison = medrec.Comparison({evil: evil, "caution": evil}, pd.DataFrame(), "x")
    object.__setattr__(comparison, "display", lambda: pd.DataFrame({evil: [f"{evil}\nx"]}))
    assert "<script>" not in comparison_html(comparison)
    assert "<br>x" in comparison_html(comparison)
    model = medrec.Recommender(evil)
    assert "<script>" not in model._repr_html_()


# --------------------------------------------------------------------------- pictures


def test_the_figure_of_an_elf_map_holds_its_isosurface():
    from quantum.store import Record

    edge = np.linspace(-3.0, 3.0, 21)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(edge, edge, edge, indexing="ij")))
    record = Record(
        key="a", stage="elf", request={"species": {"smiles": "[He]"}},
        scalars={"origin_bohr": [-3.0] * 3, "spacing_bohr": 0.3},
        arrays={
            "elf": np.exp(-radius).astype(np.float32),
            "coords_bohr": np.zeros((1, 3)), "atomic_numbers": np.array([2], np.int16),
        },
    )  # fmt: skip
    figure = medrec.show_elf(record)
    surfaces = [trace for trace in figure.data if trace.type == "mesh3d"]
    assert surfaces
    assert medrec.show_elf(record, slices=True).data
    with pytest.raises(InputError, match="holds no ELF map"):
        medrec.show_elf("CCO")


# --------------------------------------------------------------------------- documents


def python_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def last_value(source: str, names: dict):
    tree = ast.parse(source)
    last = tree.body.pop()
    exec(compile(tree, "<document>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<document>", "eval"), names)


def test_the_example_for_users_of_pyhealth_runs(root: Path, synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDREC_HOME", str(tmp_path))
    (source,) = python_of(root / "docs" / "migrating-from-pyhealth.md")
    path = "configs/data/mimic4_full_strict.yaml"
    assert (root / path).is_file()
    source = source.replace(path, str(synthetic[1].folder)).replace("epochs=50", "epochs=1")
    source = source.replace('"safedrug", ', f'"safedrug", home={str(tmp_path)!r}, ')
    table = last_value(source, {})
    rows = load_rows(medrec.Recommender.load("safedrug", home=tmp_path).run_)
    hits, sizes = rows["n_hit"], rows["n_true"] + rows["n_selected"] - rows["n_hit"]
    # scikit-learn's jaccard_score(average="samples"), but for two empty sets
    expected = np.where(sizes > 0, hits / np.maximum(sizes, 1), 1.0).mean()
    assert table.loc["jaccard_visit_mean", "value"] == pytest.approx(expected)


def test_the_names_on_the_page_are_ours(root: Path):
    text = (root / "docs" / "migrating-from-pyhealth.md").read_text(encoding="utf-8")
    for name in re.findall(r'"(\w+)"', text.split("(not there)")[1].split("\n")[0]):
        medrec.Recommender(name).config()
    for name in re.findall(r'`Recommender\("(\w+)"', text):
        medrec.Recommender(name).config()


def test_the_lines_of_the_library_page_run(root: Path, synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDREC_HOME", str(tmp_path))
    source = python_of(root / "docs" / "library.md")[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    source = source.replace('"synthetic_small"', repr(str(synthetic[1].folder)))
    source = source.replace("epochs=20", f"home={str(tmp_path)!r}, epochs=1")
    source = source.replace("Recommender(name)", f"Recommender(name, home={str(tmp_path)!r})")
    comparison = last_value(source, {})
    assert len(comparison.table) == 3
