"""Events to the tables of a cohort folder: visits, splits, drugs, molecules, ddi, codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from medrec.config import CohortConfig
from medrec.data import ddi
from medrec.data.checks import compare_counts
from medrec.data.codes import CodeMaps, ndc_problems
from medrec.data.drug_maps import user_maps
from medrec.data.molecule_table import class_molecules
from medrec.data.schema import ATC_CHARACTERS, Events, data_root
from medrec.data.splits import make_splits, splits_to_frame
from medrec.data.visits import VisitTables, build_visits

CODE_KINDS = ("diagnoses", "procedures", "drugs")
_NOTES = (
    "Diagnosis and procedure codes are billing codes assigned after discharge: the task is to "
    "complete the drug set of a stay, not to prescribe at its beginning.",
    "The drugs of a visit are those of the whole stay.",
)


def build_tables(
    config: CohortConfig, events: Events, user_ddi: Path | None
) -> tuple[dict[str, pd.DataFrame | pl.DataFrame], dict[str, Any], NDArray[np.float32] | None]:
    """Tables of a cohort folder by file name, and what ``cohort.json`` says about them.

    The third value holds the planted probabilities of synthetic records, shape (visits, drug
    classes), in the order of the tables; None for any other source.

    Raises
    ------
    DataError
        If a filter leaves nothing, or too few patients for a split.
    """
    root = data_root()
    maps = CodeMaps(root / "codes", user_maps(config.drug_maps))
    known = class_molecules(root / "molecules", config.molecules, config.atc_level, ())
    visit_tables = build_visits(events, config, maps, set(known["atc"]))
    visits = visit_tables.visits
    atcs = visits["drugs"].explode().unique().sort().to_list()
    drugs = pd.DataFrame({"atc": atcs, "name": [maps.atc_names.get(atc, "") for atc in atcs]})
    molecules = class_molecules(
        root / "molecules", config.molecules, config.atc_level, visit_tables.prescribed
    ).to_pandas()
    molecules = molecules[molecules["atc"].isin(atcs)].reset_index(drop=True)
    interactions = ddi.class_interactions(
        config.ddi, atcs, config.atc_level, root / "ddi", user_ddi
    )
    splits = make_splits(
        visits["patient"].n_unique(),
        config.split_rule,
        config.split_fractions,
        config.split_seed,
        config.n_splits,
    )
    drug_codes = drugs.rename(columns={"atc": "code", "name": "title"}).assign(system="drug")
    tables: dict[str, pd.DataFrame | pl.DataFrame] = {
        "visits": visits,
        "splits": splits_to_frame(splits),
        "drugs": drugs,
        "molecules": molecules,
        "ddi": interactions.to_pandas(),
        "codes": pd.concat([visit_tables.codes, drug_codes], ignore_index=True),
    }
    density = ddi.density(interactions, len(atcs), config.ddi.min_severity)
    record: dict[str, Any] = {
        "counts": _counts(visits, molecules, len(splits)),
        "funnel": visit_tables.funnel.to_dict("records"),
        "coverage": visit_tables.coverage.to_dict("records"),
        "problems": table_problems(events, config, maps),
        "ddi": {
            "source": config.ddi.source,
            "min_severity": config.ddi.min_severity if config.ddi.source == "ansm" else None,
            "n_classes": len(atcs),
            "n_class_pairs": len(interactions),
            "density": density,
        },
        "notes": [*events.notes, *_notes(config, visit_tables, drugs, molecules)],
    }
    record["expected_counts"] = compare_counts(config.expected_counts, record["counts"])
    return tables, record, _probabilities(visit_tables.oracle, atcs, config)


def table_problems(
    events: Events, config: CohortConfig, maps: CodeMaps | None = None
) -> list[dict[str, Any]]:
    """What was wrong with the tables: ``table``, ``problem``, ``rows``, ``done``."""
    maps = maps or CodeMaps(data_root() / "codes", user_maps(config.drug_maps))
    return events.problems + ndc_problems(events.prescriptions, maps, config.drug_routes)


def _probabilities(
    oracle: pl.DataFrame | None, classes: list[str], config: CohortConfig
) -> NDArray[np.float32] | None:
    """Columns of the classes left; every class was planted with one substance."""
    if oracle is None:
        return None
    length = ATC_CHARACTERS[config.atc_level]
    column = {atc5[:length]: atc5 for atc5 in oracle.columns}
    return np.ascontiguousarray(oracle.select(column[atc] for atc in classes).to_numpy())


def _counts(visits: pl.DataFrame, molecules: pd.DataFrame, n_splits: int) -> dict[str, Any]:
    per_patient = visits.group_by("patient").len()["len"]
    n = len(visits)
    means = {
        f"mean_{kind}_per_visit": int(visits[kind].list.len().sum()) / n for kind in CODE_KINDS
    }
    sizes = {kind: visits[kind].explode().drop_nulls().n_unique() for kind in CODE_KINDS}
    return {
        "patients": len(per_patient),
        "visits": n,
        "mean_visits_per_patient": n / len(per_patient),
        "max_visits_per_patient": int(per_patient.to_numpy().max()),
        "patients_with_one_visit": int((per_patient == 1).sum()),
        "molecules": int(molecules["smiles"].nunique()),
        "splits": n_splits,
        **sizes,
        **means,
    }


def _notes(
    config: CohortConfig, visit_tables: VisitTables, drugs: pd.DataFrame, molecules: pd.DataFrame
) -> list[str]:
    notes = list(_NOTES)
    if config.visit_order == "hadm_id":
        notes.append(
            "Visits are in order of the admission number, which is not the order of time: a "
            "patient's history may hold the patient's future."
        )
    if config.forward_fill_ndc:
        notes.append(
            "Missing drug codes were filled from the row above, as in the published scripts: "
            "drugs moved between patients."
        )
    if config.split_rule == "file_order":
        notes.append("The file-order rule has one split; n_splits and split_seed do not matter.")
    if config.vocabulary_fit == "all":
        notes.append("Vocabularies are fitted on all patients, test patients included.")
    untitled = int((visit_tables.codes["title"] == "").sum())
    if untitled:
        notes.append(
            f"{untitled} diagnosis or procedure codes have no title in the shipped tables."
        )
    without = set(drugs["atc"]) - set(molecules["atc"])
    if without:
        notes.append(f"{len(without)} drug classes have no molecule.")
    return notes
