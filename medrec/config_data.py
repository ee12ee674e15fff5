"""Configuration of records and cohorts; see `medrec.config`, which has everything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from quantum.base import Frozen


class Mimic3Source(Frozen):
    """A folder with the MIMIC-III tables (CSV or CSV.GZ, any case of names)."""

    format: Literal["mimic3"]
    path: str
    restricted: bool = Field(True, description="credentialed data: keep derived rows out of git")


class Mimic4Source(Frozen):
    """A folder with MIMIC-IV's ``hosp/`` tables (CSV or CSV.GZ)."""

    format: Literal["mimic4"]
    path: str
    restricted: bool = Field(True, description="credentialed data: keep derived rows out of git")


class SyntheticSource(Frozen):
    """Made-up records with a planted structure, for tests and the first try."""

    format: Literal["synthetic"]
    n_patients: PositiveInt = 200
    n_diagnoses: PositiveInt = 60
    n_procedures: PositiveInt = 30
    n_drugs: PositiveInt = 24
    mean_visits: Annotated[float, Field(ge=1.0)] = 2.4
    seed: NonNegativeInt = 0
    restricted: bool = False


RecordSource = Annotated[
    Mimic3Source | Mimic4Source | SyntheticSource, Field(discriminator="format")
]

_PRESETS: dict[str, dict[str, Any]] = {
    "strict": {
        "visit_order": "admit_time",
        "min_visits_rule": "after_joins",
        "forward_fill_ndc": False,
        "ndc_policy": "all",
        "icd_version_prefix": True,
        "vocabulary_fit": "train",
        "molecules": "formulary",
        "top_diagnoses": None,
        "top_drugs": None,
        "split_rule": "random",
    },
    "legacy": {
        "visit_order": "hadm_id",
        "min_visits_rule": "raw_prescriptions",
        "forward_fill_ndc": False,
        "ndc_policy": "first",
        "icd_version_prefix": False,
        "vocabulary_fit": "all",
        "molecules": "molerec",
        "top_diagnoses": 2000,
        "top_drugs": 300,
        "split_rule": "file_order",
    },
}


class CohortConfig(Frozen):
    """Raw tables to a cohort. `strict` and `legacy` fill the fields you leave out.

    ``strict``: time order, at least two visits after all joins, everything fitted on training
    patients, seeded random patient split. ``legacy``: the published rules of the GAMENet,
    SafeDrug and MoleRec line, with their file order, minus the forward fill of missing codes
    (set ``forward_fill_ndc: true`` to have that back too).
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    source: RecordSource
    preset: Literal["strict", "legacy"] = "strict"
    visit_order: Literal["admit_time", "hadm_id"] = "admit_time"
    min_visits: PositiveInt = 2
    min_visits_rule: Literal["after_joins", "raw_prescriptions"] = "after_joins"
    drug_types: tuple[Literal["MAIN", "BASE", "ADDITIVE"], ...] = ("MAIN", "BASE", "ADDITIVE")
    require_procedures: bool = True
    require_molecule: bool = Field(True, description="keep only drug classes that have a SMILES")
    molecules: Literal["formulary", "class", "molerec"] = Field(
        "formulary",
        description="molecules of a drug class: substances prescribed in the cohort's hospital; "
        "every approved substance; or MoleRec's published table (ATC level 3 only)",
    )
    forward_fill_ndc: bool = False
    drug_routes: tuple[Literal["gsn", "ndc", "name"], ...] = Field(
        ("gsn", "ndc", "name"), description="ways from a prescription row to ATC, tried in order"
    )
    ndc_policy: Literal["all", "first"] = Field(
        "all", description="a code with several ATC classes: keep all, or the first in code order"
    )
    atc_level: Literal[3, 4, 5] = Field(3, description="WHO level; 3 = four characters (A02B)")
    icd_version_prefix: bool = True
    vocabulary_fit: Literal["train", "all"] = "train"
    top_diagnoses: PositiveInt | None = None
    top_procedures: PositiveInt | None = None
    top_drugs: PositiveInt | None = None
    split_rule: Literal["random", "file_order"] = "random"
    split_fractions: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (2 / 3, 1 / 6, 1 / 6), description="train, validation, test (shares of patients)"
    )
    split_seed: NonNegativeInt = 0
    n_splits: PositiveInt = Field(5, le=100, description="independent splits that are saved")
    ddi: DdiConfig = Field(default_factory=lambda: DdiConfig())

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        chosen = _PRESETS.get(values.get("preset", "strict"), {})
        return {**chosen, **values}

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> CohortConfig:
        if abs(sum(self.split_fractions) - 1.0) > 1e-6:
            raise ValueError(f"split_fractions sum to {sum(self.split_fractions):g}, expected 1")
        return self


class DdiConfig(Frozen):
    """Where drug-drug interactions come from."""

    source: Literal["ansm", "twosides"] = "ansm"
    min_severity: int = Field(
        3,
        ge=1,
        le=4,
        description="ANSM: 1 take into account, 2 precaution, 3 not recommended, 4 contraindicated",
    )
    path: str | None = Field(None, description="TWOSIDES drug-DDI.csv supplied by the user")
    n_rarest_types: PositiveInt = Field(40, description="TWOSIDES: rarest side-effect types kept")

    @model_validator(mode="after")
    def _twosides_needs_path(self) -> DdiConfig:
        if self.source == "twosides" and not self.path:
            raise ValueError("ddi.source 'twosides' needs ddi.path, the user's drug-DDI.csv")
        return self
