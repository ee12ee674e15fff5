"""A made-up hospital as MIMIC-III or MIMIC-IV tables, with the counts after every filter known.

The kept visits are those of the synthetic cohort of that name. Around them stand the admissions and
rows that the filters of the ``strict`` preset take out, each planned with its reason, so that the
funnel of the preparation follows by arithmetic, before any table is read. Tables are written in
pieces of whole admissions; memory does not grow with the scale beyond the plan itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from medrec.config import SyntheticSource
from medrec.data.raw_plan import CENSUS, Admissions, expected_funnel, plan_admissions
from medrec.data.raw_products import build_products
from medrec.data.raw_write import Like, Tell, write_tables
from medrec.data.synthetic import Hospital, simulate
from quantum.base import InputError, write_json_atomic

FUNNEL_FILE, ORACLE_FILE = "expected_funnel.json", "oracle.parquet"


def write_raw_tables(
    like: Like, scale: float, folder: Path, seed: int = 0, tell: Tell | None = None
) -> dict[str, Any]:
    """Write the tables, ``oracle.parquet`` and ``expected_funnel.json``.

    Parameters
    ----------
    scale : float
        Share of the full hospital's patients; 1 is its full size.
    folder : pathlib.Path
        Made if it does not exist; tables already there are refused.

    Returns
    -------
    dict
        Content of ``expected_funnel.json``: ``like``, ``scale``, ``seed``, ``funnel`` (one entry
        per filter of the ``strict`` preset) and ``tables`` (rows per table).

    Raises
    ------
    InputError
        If the scale is out of range or the folder holds tables.
    """
    source = _source(like, scale, seed)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"folder for raw tables is not empty: {folder}; expected a new one")
    folder.mkdir(parents=True, exist_ok=True)
    report = tell or (lambda done, total, note: None)
    report(0, 0, "simulating visits")
    hospital = simulate(source)
    products = build_products(hospital.plan)
    rng = np.random.default_rng([seed, 5])
    plan = plan_admissions(hospital, CENSUS[like], scale, rng)
    expected: dict[str, Any] = {"like": like, "scale": scale, "seed": seed}
    expected["funnel"] = expected_funnel(plan)
    _write_oracle(hospital, plan, folder / ORACLE_FILE)
    expected["tables"] = write_tables(like, folder, hospital, products, plan, rng, report)
    write_json_atomic(folder / FUNNEL_FILE, expected)
    return expected


def _source(like: Like, scale: float, seed: int) -> SyntheticSource:
    values: dict[str, Any] = {"format": "synthetic", "like": like, "seed": seed}
    full = SyntheticSource.model_validate(values)
    n_patients = round(scale * full.n_patients)
    if not 20 <= n_patients <= 10 * full.n_patients:
        raise InputError(
            f"scale is {scale:g}, which makes {n_patients} patients of the cohort; expected 20 to "
            f"{10 * full.n_patients}"
        )
    return SyntheticSource.model_validate({**values, "n_patients": n_patients})


def _write_oracle(hospital: Hospital, plan: Admissions, path: Path) -> None:
    """Probabilities of the simulated visits by SUBJECT_ID and HADM_ID, for the record."""
    columns = [item.atc5 for item in hospital.plan.drugs]
    frame = pl.DataFrame(hospital.probability[plan.template[plan.own]], schema=columns)
    frame.select(
        pl.Series("subject", plan.subject[plan.own]),
        pl.Series("admission", plan.number[plan.own]),
        pl.all(),
    ).write_parquet(path)
