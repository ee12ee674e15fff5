"""Events to the tables of a cohort folder: visits, splits, drugs, molecules, ddi, codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medrec.config import CohortConfig
from medrec.data import ddi
from medrec.data.codes import CodeMaps
from medrec.data.molecule_table import class_molecules
from medrec.data.schema import Events, data_root
from medrec.data.splits import make_splits, splits_to_frame
from medrec.data.visits import VisitTables, build_visits

_NOTES = (
    "Diagnosis and procedure codes are billing codes assigned after discharge: the task is to "
    "complete the drug set of a stay, not to prescribe at its beginning.",
    "The drugs of a visit are those of the whole stay.",
)


def build_tables(
    config: CohortConfig, events: Events, user_ddi: Path | None
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables of a cohort folder by file name, and what ``cohort.json`` says about them.

    Raises
    ------
    DataError
        If a filter leaves nothing, or too few patients for a split.
    """
    root = data_root()
    maps = CodeMaps(root / "codes")
    known = class_molecules(root / "molecules", config.molecules, config.atc_level, ())
    visit_tables = build_visits(events, config, maps, set(known["atc"]))
    visits = visit_tables.visits
    atcs = sorted({atc for drugs in visits["drugs"] for atc in drugs})
    drugs = pd.DataFrame({"atc": atcs, "name": [maps.atc_names.get(atc, "") for atc in atcs]})
    molecules = class_molecules(
        root / "molecules", config.molecules, config.atc_level, visit_tables.prescribed
    ).to_pandas()
    interactions = ddi.class_interactions(
        config.ddi, atcs, config.atc_level, root / "ddi", user_ddi
    )
    splits = make_splits(
        int(visits["patient"].nunique()),
        config.split_rule,
        config.split_fractions,
        config.split_seed,
        config.n_splits,
    )
    drug_codes = drugs.rename(columns={"atc": "code", "name": "title"}).assign(system="drug")
    tables = {
        "visits": visits,
        "splits": splits_to_frame(splits),
        "drugs": drugs,
        "molecules": molecules[molecules["atc"].isin(atcs)].reset_index(drop=True),
        "ddi": interactions.to_pandas(),
        "codes": pd.concat([visit_tables.codes, drug_codes], ignore_index=True),
    }
    density = ddi.density(interactions, len(atcs), config.ddi.min_severity)
    record = {
        "counts": _counts(tables, len(splits)),
        "funnel": visit_tables.funnel.to_dict("records"),
        "coverage": visit_tables.coverage.to_dict("records"),
        "ddi": {
            "source": config.ddi.source,
            "min_severity": config.ddi.min_severity if config.ddi.source == "ansm" else None,
            "n_classes": len(atcs),
            "n_class_pairs": len(interactions),
            "density": density,
        },
        "notes": _notes(config, visit_tables, tables),
    }
    return tables, record


def _counts(tables: dict[str, pd.DataFrame], n_splits: int) -> dict[str, Any]:
    visits = tables["visits"]
    per_patient = visits.groupby("patient").size()
    means = {
        f"mean_{kind}_per_visit": float(visits[kind].str.len().mean())
        for kind in ("diagnoses", "procedures", "drugs")
    }
    sizes = {
        kind: len({code for codes in visits[kind] for code in codes})
        for kind in ("diagnoses", "procedures", "drugs")
    }
    return {
        "patients": len(per_patient),
        "visits": len(visits),
        "mean_visits_per_patient": float(per_patient.mean()),
        "max_visits_per_patient": int(per_patient.max()),
        "patients_with_one_visit": int((per_patient == 1).sum()),
        "molecules": int(tables["molecules"]["smiles"].nunique()),
        "splits": n_splits,
        **sizes,
        **means,
    }


def _notes(
    config: CohortConfig, visit_tables: VisitTables, tables: dict[str, pd.DataFrame]
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
    without = set(tables["drugs"]["atc"]) - set(tables["molecules"]["atc"])
    if without:
        notes.append(f"{len(without)} drug classes have no molecule.")
    return notes
