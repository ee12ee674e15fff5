"""Configuration of records and cohorts; see `medrec.config`, which has everything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from quantum.base import Frozen


class Mimic3Source(Frozen):
    """A folder with the MIMIC-III tables (CSV, CSV.GZ or parquet, any case of names)."""

    format: Literal["mimic3"]
    path: str
    restricted: bool = Field(True, description="credentialed data: keep derived rows out of git")


class Mimic4Source(Frozen):
    """A folder with MIMIC-IV's ``hosp/`` tables (CSV, CSV.GZ or parquet)."""

    format: Literal["mimic4"]
    path: str
    restricted: bool = Field(True, description="credentialed data: keep derived rows out of git")


class EicuSource(Frozen):
    """A folder with the eICU tables patient, medication, diagnosis, treatment.

    There are no NDC and no ICD procedures: drugs are found by name, and paths of treatments stand
    for procedures. The order of a patient's stays is known by year only.
    """

    format: Literal["eicu"]
    path: str
    restricted: bool = Field(True, description="credentialed data: keep derived rows out of git")
    diagnosis_codes: Literal["icd9_first", "icd10_first", "both"] = Field(
        "icd9_first",
        description="a diagnosis is stated in both versions: take the codes of one, of the other "
        "where it has none, or of both",
    )
    treatment_depth: PositiveInt | None = Field(
        3, description="levels of a treatment's path that make its code; null takes all"
    )
    treatments: Literal["procedures", "all"] = Field(
        "procedures",
        description="'procedures' leaves out treatments that say which drug or drug class was "
        "given, because that is what is to be predicted",
    )
    names_from_hicl: bool = Field(
        False,
        description="give an order without a name the commonest name of its HICL number, the "
        "number of its ingredients",
    )
    with_admission_drugs: bool = Field(
        False, description="count the drugs of table admissiondrug too (taken before admission)"
    )


class MedsSource(Frozen):
    """A dataset in the Medical Event Data Standard: parquet events below ``data/``.

    Codes are recognised by how they begin; what follows is the code or the name. Where events have
    no column ``hadm_id``, stays are the intervals from admission to discharge.
    """

    format: Literal["meds"]
    path: str
    restricted: bool = Field(True, description="keep derived rows out of git")
    admission: tuple[str, ...] = ("HOSPITAL_ADMISSION",)
    discharge: tuple[str, ...] = ("HOSPITAL_DISCHARGE",)
    diagnosis: dict[str, Literal[9, 10]] = Field(
        {
            "DIAGNOSIS//ICD//9//": 9,
            "DIAGNOSIS//ICD//10//": 10,
            "DIAGNOSIS//ICD9//": 9,
            "DIAGNOSIS//ICD10//": 10,
            "DIAGNOSIS//ICD9CM//": 9,
            "DIAGNOSIS//ICD10CM//": 10,
        },
        description="beginning of a code, and its ICD version",
    )
    procedure: dict[str, Literal[0, 9, 10]] = Field(
        {
            "PROCEDURE//ICD//9//": 9,
            "PROCEDURE//ICD//10//": 10,
            "PROCEDURE//ICD9//": 9,
            "PROCEDURE//ICD10//": 10,
            "PROCEDURE//ICD9PROC//": 9,
            "PROCEDURE//ICD10PCS//": 10,
            "PROCEDURE//PATH//": 0,
        },
        description="beginning of a code, and its ICD version; 0 if it is no ICD code",
    )
    medication: tuple[str, ...] = Field(
        ("MEDICATION//START//",), description="beginning of a code, before the drug's name"
    )
    medication_ndc: tuple[str, ...] = Field(
        ("MEDICATION//NDC//",), description="beginning of a code, before the drug's NDC"
    )


_LIKE: dict[str, dict[str, Any]] = {
    "small": {
        "n_patients": 200,
        "n_diagnoses": 60,
        "n_procedures": 30,
        "n_drugs": 24,
        "mean_diagnoses": 4.0,
        "mean_procedures": 1.5,
    },
    "mimic3": {
        "n_patients": 6_350,
        "n_visits": 15_032,
        "n_diagnoses": 1_958,
        "n_procedures": 1_430,
        "n_drugs": 131,
        "mean_diagnoses": 10.2,
        "mean_procedures": 3.8,
        "mean_drugs": 19.0,
    },
    "mimic4": {
        "n_patients": 60_125,
        "n_visits": 156_810,
        "n_diagnoses": 2_000,
        "n_procedures": 1_500,
        "n_drugs": 131,
        "mean_diagnoses": 10.2,
        "mean_procedures": 3.8,
        "mean_drugs": 19.0,
    },
}
Planted = Literal["base", "history", "structure", "interactions"]


class SyntheticSource(Frozen):
    """Made-up records with a planted structure whose best possible prediction is known.

    ``like`` fills the sizes you leave out: ``mimic3`` and ``mimic4`` have the published numbers of
    patients, visits and codes of those cohorts (means per visit of MIMIC-III for both).
    """

    format: Literal["synthetic"]
    like: Literal["small", "mimic3", "mimic4"] = "small"
    planted: tuple[Planted, ...] = Field(
        ("base", "history"),
        description="what drugs depend on: base, the diagnoses and procedures of the visit (always "
        "there); history, earlier drugs and diagnoses; structure, similar molecules share "
        "indications; interactions, a drug is held back after an interacting one",
    )
    n_patients: PositiveInt
    n_visits: PositiveInt | None = Field(
        None, description="visits in all, two or more per patient; None draws 1 + Poisson"
    )
    max_visits: Annotated[int, Field(ge=2)] = 29
    n_diagnoses: PositiveInt
    n_procedures: PositiveInt
    n_drugs: PositiveInt
    mean_visits: Annotated[float, Field(ge=1.0)] = Field(
        2.4, description="visits of a patient, where n_visits is not given"
    )
    mean_diagnoses: Annotated[float, Field(ge=2.0)]
    mean_procedures: Annotated[float, Field(ge=1.0)]
    mean_drugs: PositiveFloat | None = Field(None, description="None is a fifth of n_drugs")
    seed: NonNegativeInt = 0
    hospital: NonNegativeInt = Field(
        0, description="other patients under the same planted rules, for replication"
    )
    restricted: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_from_like(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("like", "small") not in _LIKE:
            return values
        chosen = dict(_LIKE[values.get("like", "small")])
        patients = values.get("n_patients")
        if "n_visits" in chosen and isinstance(patients, int):
            chosen["n_visits"] = round(chosen["n_visits"] * patients / chosen["n_patients"])
        return {**chosen, **values}

    @model_validator(mode="after")
    def _sizes_fit(self) -> SyntheticSource:
        least, most = 2 * self.n_patients, self.max_visits * self.n_patients
        if self.n_visits is not None and not least <= self.n_visits <= most:
            raise ValueError(
                f"n_visits is {self.n_visits}; {self.n_patients} patients with 2 to "
                f"{self.max_visits} visits have {least} to {most}"
            )
        if self.mean_drugs is not None and self.mean_drugs > 0.6 * self.n_drugs:
            raise ValueError(
                f"mean_drugs is {self.mean_drugs:g}; expected at most 0.6 of n_drugs, "
                f"{0.6 * self.n_drugs:g}"
            )
        if "base" not in self.planted or len(set(self.planted)) != len(self.planted):
            raise ValueError("planted holds 'base' and each other name at most once")
        return self


RecordSource = Annotated[
    Mimic3Source | Mimic4Source | EicuSource | MedsSource | SyntheticSource,
    Field(discriminator="format"),
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
    drug_routes: tuple[Literal["gsn", "ndc", "name", "rxcui"], ...] = Field(
        ("gsn", "ndc", "name"),
        description="ways from a prescription row to ATC, tried in order; rxcui needs drug_maps",
    )
    drug_maps: DrugMapsConfig | None = None
    ndc_policy: Literal["all", "first", "systemic_first"] = Field(
        "all",
        description="a code with several ATC classes: keep all, the first in code order (by rxcui "
        "in the order of your file), or those that fit the order's route",
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
    expected_counts: (
        dict[Literal["patients", "visits", "diagnoses", "procedures", "drugs"], int] | None
    ) = Field(None, description="published counts, to be compared with those of the cohort")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        chosen = _PRESETS.get(values.get("preset", "strict"), {})
        return {**chosen, **values}

    @model_validator(mode="after")
    def _rxcui_needs_maps(self) -> CohortConfig:
        if ("rxcui" in self.drug_routes) != (self.drug_maps is not None):
            raise ValueError(
                "drug_routes 'rxcui' and drug_maps need each other; expected "
                "drug_maps.rxcui_to_atc, the path of a CSV with RXCUI and ATC4, or neither"
            )
        return self

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> CohortConfig:
        if abs(sum(self.split_fractions) - 1.0) > 1e-6:
            raise ValueError(f"split_fractions sum to {sum(self.split_fractions):g}, expected 1")
        return self


class DrugMapsConfig(Frozen):
    """The user's maps for the route ``rxcui``: those of the published pipelines, or RxNorm."""

    rxcui_to_atc: str | None = Field(None, description="CSV with RXCUI and ATC5, ATC4, ATC3 or ATC")
    ndc_to_rxcui: str | None = Field(
        None, description="dictionary text or CSV with NDC and RXCUI; null takes the shipped map"
    )
    rxnorm: str | None = Field(
        None,
        description="rrf/ folder of an RxNorm release: drugs by their ingredients, whose ATC codes "
        "are of level 5",
    )

    @model_validator(mode="after")
    def _one_kind_of_map(self) -> DrugMapsConfig:
        if (self.rxnorm is None) == (self.rxcui_to_atc is None) or (
            self.rxnorm is not None and self.ndc_to_rxcui is not None
        ):
            raise ValueError(
                "drug_maps has maps of two kinds or none; expected rxcui_to_atc (perhaps with "
                "ndc_to_rxcui), or rxnorm"
            )
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
