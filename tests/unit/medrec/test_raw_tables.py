"""Raw tables made up in MIMIC's format: what they hold is what the preparation finds."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pytest

from medrec.config import CohortConfig
from medrec.data.cohort import prepare_cohort
from medrec.data.raw_columns import table_path
from medrec.data.raw_tables import write_raw_tables
from medrec.data.tables import header
from medrec.runs import Home
from quantum.base import InputError

TABLES = ("prescriptions", "diagnoses_icd", "procedures_icd", "admissions", "patients")
SCALES = {"mimic3": 0.01, "mimic4": 0.002}


@pytest.fixture(scope="module", params=sorted(SCALES))
def made(request, tmp_path_factory):
    """Format, folder, expected record, and the cohort prepared from the tables."""
    like = request.param
    folder = tmp_path_factory.mktemp(like) / "raw"
    told: list[tuple[int, int, str]] = []
    expected = write_raw_tables(like, SCALES[like], folder, 3, lambda *item: told.append(item))
    config = {"name": like, "source": {"format": like, "path": str(folder)}}
    home = Home(tmp_path_factory.mktemp("home"))
    cohort = prepare_cohort(CohortConfig.model_validate(config), home)
    return like, folder, expected, cohort, told


def test_the_funnel_is_the_one_known_in_advance(made):
    _, folder, expected, cohort, _ = made
    assert cohort.funnel.to_dict("records") == expected["funnel"]
    assert json.loads((folder / "expected_funnel.json").read_text()) == expected
    visits = [step["visits"] for step in expected["funnel"]]
    # every filter that has a reason in these tables takes something away
    steps = ("ATC code", "molecule", "diagnosis", "procedure", "visits left")
    dropped = [
        step["step"]
        for step, before, after in zip(expected["funnel"][1:], visits, visits[1:], strict=False)
        if after < before
    ]
    assert all(any(name in step for step in dropped) for name in steps)


def test_the_cohort_is_the_synthetic_one(made, tmp_path):
    like, _, _, cohort, _ = made
    full = {"mimic3": 6_350, "mimic4": 60_125}[like]
    source = {"format": "synthetic", "like": like, "seed": 3}
    source["n_patients"] = round(SCALES[like] * full)
    config = CohortConfig.model_validate({"name": "direct", "source": source})
    direct = prepare_cohort(config, Home(tmp_path))
    assert cohort.visits_polars.equals(direct.visits_polars)
    assert cohort.oracle is None


def test_columns_are_those_of_the_demo(made, root):
    like, folder, expected, _, _ = made
    for table in TABLES:
        demo = root / "data" / f"{like}-demo"
        demo = table_path(like, demo, table)
        names = header(table_path(like, folder, table))
        assert [name.lower() for name in names] == [name.lower() for name in header(demo)]
        with gzip.open(table_path(like, folder, table), "rt") as handle:
            assert sum(1 for _ in handle) == expected["tables"][table] + 1


def test_rows_outside_an_admission_are_there_and_not_counted(made):
    _, _, expected, _, _ = made
    read = expected["funnel"][0]["rows"]
    assert expected["tables"]["prescriptions"] - read == pytest.approx(0.01 * read, abs=8)


def test_all_three_routes_to_atc_are_used(made):
    share = made[3].coverage.set_index("route")["share"]
    assert (share[["gsn", "ndc", "name", "unmapped"]] > 0.05).all()


def test_oracle_is_written_for_the_visits_of_the_cohort(made):
    _, folder, _, cohort, _ = made
    oracle = pl.read_parquet(folder / "oracle.parquet")
    assert oracle.shape == (len(cohort.visits), 131 + 2)


def test_progress_ends_at_the_number_of_rows(made):
    told, expected = made[4], made[2]
    assert told[-1][:2] == (expected["funnel"][0]["rows"],) * 2


def test_refusals(tmp_path):
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(InputError, match="folder for raw tables is not empty"):
        write_raw_tables("mimic3", 0.01, tmp_path)
    with pytest.raises(InputError, match=r"scale is 0\.0001, which makes 1 patients"):
        write_raw_tables("mimic3", 0.0001, tmp_path / "new")
