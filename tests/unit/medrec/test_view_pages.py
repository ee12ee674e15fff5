"""What the local web page is told about runs, molecules and a typed patient."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from medrec.config import TrainConfig
from medrec.evaluation.compare import compare_runs
from medrec.recommend import recommend
from medrec.runs import Home, Run
from medrec.training import run_training
from medrec.view.app import create_app
from medrec.view.patients import search_codes
from quantum.molecule import species_from_smiles

TOKEN = "t" * 32
EVIL = "<script>document.body.dataset.error='run'</script>"


@pytest.fixture(scope="module")
def home(synthetic, tmp_path_factory) -> Home:
    """Two finished runs, one failed, one damaged, on the synthetic cohort."""
    made = Home(tmp_path_factory.mktemp("pages"))
    made.cohorts.symlink_to(synthetic[0].cohorts)
    for name in ("topk", "copy_last"):
        config = TrainConfig.model_validate({"name": name, "model": {"name": name}})
        run_training(config, synthetic[1], made)
    config = TrainConfig.model_validate({"name": "failed", "model": {"name": "topk"}})
    failed = Run.open(made, "train", "failed", config, {"cohort": synthetic[1].digest})
    failed._write_record(status="failed", error={"kind": "data", "message": EVIL})
    (made.runs / "broken-00000000").mkdir()
    (made.runs / "broken-00000000" / "run.json").write_text("{")
    return made


@pytest.fixture
def ask(home: Home):
    """Sends one request to the application, with its token."""
    app = create_app(home, TOKEN, 0)

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
                cookie = {"cookie": f"medrec_view_0={TOKEN}"}
                return await one.request(method, path, headers=cookie, **options)

        return asyncio.run(request())

    return send


def named(home: Home, beginning: str) -> Run:
    return Run.load(home.find(home.runs, beginning))


def test_runs_are_listed_with_their_test_numbers(ask, home: Home):
    rows = {row["name"]: row for row in ask("GET", "/api/runs").json()["runs"]}
    assert len(rows) == 4
    run = named(home, "topk")
    assert rows[run.name]["metrics"]["jaccard"] == run.report()["test"]["jaccard"]
    assert rows[run.name]["cohort"] == next(home.cohorts.glob("tiny-*")).name
    assert rows["broken-00000000"]["status"] == "unreadable"
    failed = next(row for name, row in rows.items() if name.startswith("failed"))
    assert failed["status"] == "failed"
    assert failed["error"]["message"] == EVIL  # as text of JSON: the page makes it a text node
    assert failed["metrics"] == {}


def test_a_run_shows_its_record(ask, home: Home):
    run = named(home, "copy_last")
    found = ask("GET", f"/api/runs/{run.name}").json()
    assert found["digest"] == run.digest
    assert found["config"] == (run.folder / "config.yaml").read_text()
    assert found["restricted"] is False
    assert ask("GET", f"/api/runs/{run.name}/curves").json()["epoch"] == [0]
    metrics = ask("GET", f"/api/runs/{run.name}/metrics").json()
    jaccard = next(row for row in metrics if row["metric"] == "jaccard")
    assert jaccard["low"] <= jaccard["value"] <= jaccard["high"]
    assert ask("GET", "/api/runs/broken-00000000").status_code == 400
    assert ask("GET", "/api/runs/topk").status_code == 404  # a beginning is no name


def test_no_answer_about_a_run_holds_patient_rows(ask, home: Home):
    run = named(home, "topk")
    for part in ("", "/curves", "/metrics"):
        assert '"patient"' not in ask("GET", f"/api/runs/{run.name}{part}").text


def test_a_comparison_is_that_of_the_package(ask, home: Home, synthetic):
    runs = [named(home, "topk"), named(home, "copy_last")]
    names = [run.name for run in runs]
    body = {"runs": names, "reference": names[1]}
    found = ask("POST", "/api/compare", json=body).json()
    expected = compare_runs(runs, synthetic[1], names[1]).table
    assert [row["jaccard"] for row in found["rows"]] == expected["jaccard"].tolist()
    assert [row["jaccard_low"] for row in found["rows"]] == expected["jaccard_low"].tolist()
    assert found["reference"] == names[1]
    failed = next(home.runs.glob("failed-*")).name
    refused = ask("POST", "/api/compare", json={"runs": [failed]})
    assert refused.status_code == 400
    assert "expected a finished training run" in refused.json()["error"]["message"]


def test_molecules_are_found_by_name_code_and_structure(ask, synthetic):
    cohort = synthetic[1]
    atc, smiles = cohort.molecules[["atc", "smiles"]].iloc[0]
    key = species_from_smiles(smiles).key
    assert key in {row["key"] for row in search(ask, atc)}
    by_structure = search(ask, smiles)
    assert by_structure[0]["key"] == key
    row = by_structure[0]
    assert key in {item["key"] for item in search(ask, row["title"].lower())}
    assert search(ask, "no such drug anywhere") == []


def search(ask, text: str) -> list[dict[str, Any]]:
    return list(ask("GET", "/api/molecules", params={"text": text}).json()["rows"])


def test_a_molecule_lists_the_interactions_of_its_classes(ask, synthetic):
    cohort = synthetic[1]
    atc, smiles = cohort.molecules[["atc", "smiles"]].iloc[0]
    key = species_from_smiles(smiles).key
    found = ask("GET", f"/api/molecules/{key}").json()
    classes = {item["atc"] for item in found["classes"]}
    assert atc in classes
    pairs = cohort.ddi_pairs
    expected = {
        (a, b, grade)
        for a, b, grade in zip(pairs["atc_a"], pairs["atc_b"], pairs["severity"], strict=True)
        if (a in classes) != (b in classes)
    }
    shown = {
        (*sorted((row["atc"], row["other"])), row["severity"]) for row in found["interactions"]
    }
    assert shown == expected
    grades = [row["severity"] for row in found["interactions"]]
    assert grades == sorted(grades, reverse=True)
    drawing = ask("GET", f"/api/molecules/{key}/drawing.svg")
    assert drawing.headers["content-type"] == "image/svg+xml"
    assert "</svg>" in drawing.text
    assert ask("GET", f"/api/molecules/{key}/conformer").status_code == 404
    assert ask("GET", "/api/molecules/0000").status_code == 404


def test_a_drug_named_like_markup_stays_text(home: Home, tmp_path: Path, synthetic):
    import shutil

    other = Home(tmp_path)
    source = next(home.cohorts.glob("tiny-*"))
    target = other.cohorts / source.name
    shutil.copytree(source, target)
    drugs = pd.read_parquet(target / "drugs.parquet").assign(name=EVIL)
    drugs.to_parquet(target / "drugs.parquet")
    app = create_app(other, TOKEN, 0)

    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
            return await one.get(path, headers={"cookie": f"medrec_view_0={TOKEN}"})

    answer = asyncio.run(get("/api/molecules"))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["rows"][0]["classes"][0]["name"] == EVIL


def patient(synthetic) -> dict[str, Any]:
    visit = synthetic[1].visits.iloc[0]
    codes = {kind: list(visit[kind]) for kind in ("diagnoses", "procedures", "drugs")}
    return {"visits": [codes, {"diagnoses": [*codes["diagnoses"], "ZZZ9"]}]}


@pytest.mark.parametrize("forbid", [None, 4, 1])
def test_a_recommendation_is_that_of_the_command(ask, home: Home, synthetic, forbid: int | None):
    run, document = named(home, "copy_last"), patient(synthetic)
    body = {"run": run.name, "document": document, "forbid": forbid}
    found = ask("POST", "/api/recommend", json=body)
    assert found.json() == json.loads(json.dumps(recommend(run, home, document, forbid)))
    assert any("ZZZ9" in text for text in found.json()["warnings"])


def test_a_patient_is_neither_logged_nor_stored(ask, home: Home, synthetic, caplog, capsys):
    before = sorted(str(path) for path in home.root.rglob("*"))
    document = {"visits": [{"diagnoses": ["SECRET9"]}]}
    with caplog.at_level(logging.DEBUG):
        answer = ask(
            "POST", "/api/recommend", json={"run": named(home, "topk").name, "document": document}
        )
        bad = {"visits": [{"diagnoses": {"SECRET9": 1}}]}
        refused = ask(
            "POST", "/api/recommend", json={"run": named(home, "topk").name, "document": bad}
        )
    assert answer.status_code == 200
    assert refused.status_code == 400
    assert "SECRET9" not in refused.text
    printed = capsys.readouterr()
    assert "SECRET9" not in caplog.text + printed.out + printed.err
    assert sorted(str(path) for path in home.root.rglob("*")) == before


def test_codes_are_described_as_the_model_reads_them(ask, home: Home, synthetic):
    code = str(synthetic[1].visits.iloc[0]["diagnoses"][0])
    run = named(home, "topk").name
    body = {"run": run, "codes": {"diagnoses": [code.lower(), "ZZZ9"]}}
    found = ask("POST", "/api/codes/describe", json=body).json()["diagnoses"]
    assert [row["match"] for row in found] == [code, None]
    loaded = ask("POST", "/api/predictor", json={"run": run}).json()
    assert loaded["codes"]["drugs"] == len(synthetic[1].vocabularies(0).drugs)
    query = {"run": run, "kind": "diagnoses", "text": code}
    assert code in {row["code"] for row in ask("POST", "/api/codes", json=query).json()}
    wrong = ask("POST", "/api/codes", json={**query, "kind": "patients"})
    assert wrong.status_code == 400


def test_codes_are_searched_by_code_and_by_words():
    pairs = [
        ("icd10:I5021", "Acute systolic (congestive) heart failure"),
        ("icd9:4280", "Congestive heart failure, unspecified"),
        ("icd10:I10", "Essential (primary) hypertension"),
        ("C07A", "beta blocking agents"),
    ]
    assert [row["code"] for row in search_codes(pairs, "I50.2")] == ["icd10:I5021"]
    assert [row["code"] for row in search_codes(pairs, "icd9:428")] == ["icd9:4280"]
    assert [row["code"] for row in search_codes(pairs, "heart failure")] == [
        "icd9:4280",
        "icd10:I5021",
    ]
    assert [row["code"] for row in search_codes(pairs, "c07")] == ["C07A"]
    assert search_codes(pairs, "cough") == []
