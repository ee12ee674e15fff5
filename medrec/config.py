"""Every configuration class; `medrec.loading` reads them from YAML.

One YAML file is one complete run, minus the defaults, which live in these classes and nowhere
else. Files do not inherit from each other: what you read is what runs. No PyTorch here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from medrec.loading import suggest
from quantum.base import Frozen
from quantum.schema import LEVELS, Level, PipelineSpec, Resources

# --------------------------------------------------------------------------- records


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


# --------------------------------------------------------------------------- molecules


class FeatureRunConfig(Frozen):
    """Which molecules go through which stages, within which budget."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    level: Level | None = Field(None, description="named pipeline, in place of `pipeline`")
    pipeline: PipelineSpec = PipelineSpec()
    atlas: Literal["shipped", "none"] = Field(
        "shipped", description="take features of the same request from data/atlas"
    )
    max_atoms: PositiveInt = Field(250, description="species above this get no SCF")
    scf_budget_cpu_s: NonNegativeFloat | None = Field(
        None,
        description="SCF and ELF for the cheapest species whose predicted CPU seconds fit; "
        "null means all",
    )
    resources: Resources = Resources()
    max_in_flight: PositiveInt = 64

    @model_validator(mode="before")
    @classmethod
    def _pipeline_of_level(cls, values: Any) -> Any:
        """Fill the pipeline in from the level; both together must agree."""
        if not isinstance(values, dict) or values.get("level") not in LEVELS:
            return values
        pipeline = LEVELS[values["level"]]
        given = values.get("pipeline", pipeline)
        if PipelineSpec.model_validate(given) != pipeline:
            raise ValueError(f"level '{values['level']}' and another pipeline exclude each other")
        return {**values, "pipeline": pipeline}


class EncoderConfig(Frozen):
    """Sizes of the 2D and 3D molecule encoders."""

    d_model: PositiveInt = Field(64, le=1024)
    gin_layers: PositiveInt = Field(4, le=12)
    gvp_layers: PositiveInt = Field(3, le=12)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    cutoff_angstrom: PositiveFloat = 4.5
    n_rbf: PositiveInt = 16


class BimodalPretrainConfig(Frozen):
    """Contrastive 2D-3D pre-training (BiMoRec, stage 1)."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    encoder: EncoderConfig = EncoderConfig()
    temperature: PositiveFloat = 0.1
    symmetric: bool = Field(False, description="false is the paper's one-directional NT-Xent")
    epochs: PositiveInt = 300
    lr: PositiveFloat = 2e-3
    lr_step_epochs: PositiveInt = 100
    lr_gamma: PositiveFloat = 0.1
    batch_size: PositiveInt | None = Field(None, description="null is full batch, as in the paper")
    checkpoint_every_epochs: PositiveInt = 5
    seed: NonNegativeInt = 1203


# --------------------------------------------------------------------------- recommenders


class TopKModelConfig(Frozen):
    """The k most frequent drugs of the training visits, k = their mean number per visit."""

    name: Literal["topk"] = "topk"


class CopyLastModelConfig(Frozen):
    """The previous visit's drugs; top-k at a first visit."""

    name: Literal["copy_last"] = "copy_last"


class CopyFrequencyModelConfig(Frozen):
    """Previous visit's drugs united with the most frequent ones."""

    name: Literal["copy_frequency"] = "copy_frequency"
    min_frequency: float = Field(0.5, ge=0.0, le=1.0)


class LogisticRegressionModelConfig(Frozen):
    """One-vs-rest logistic regression on the current visit's codes (scikit-learn)."""

    name: Literal["logistic_regression"] = "logistic_regression"
    c: PositiveFloat = 1.0
    max_iterations: PositiveInt = 1000


class MoleRecModelConfig(Frozen):
    """MoleRec (Yang et al., WWW 2023), batched, with optional pre-trained and ELF inputs."""

    name: Literal["molerec"] = "molerec"
    d_model: PositiveInt = Field(64, le=1024)
    gnn_layers: PositiveInt = Field(4, le=12)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    gnn_dropout: float = Field(0.5, ge=0.0, lt=1.0)
    n_heads: PositiveInt = 2
    sab: Literal["reference", "paper"] = "reference"
    substructure_encoder: Literal["gnn", "table"] = "gnn"
    use_elf: bool = Field(False, description="add the ELF features of the drugs, with their mask")
    feature_sets: tuple[str, ...] | None = Field(
        None, description="which sets of the feature table `use_elf` reads; null means all"
    )


ModelConfig = Annotated[
    TopKModelConfig
    | CopyLastModelConfig
    | CopyFrequencyModelConfig
    | LogisticRegressionModelConfig
    | MoleRecModelConfig,
    Field(discriminator="name"),
]


class LossConfig(Frozen):
    """Prediction loss and the DDI-gated loss (SafeDrug line)."""

    bce_weight: float = Field(0.95, ge=0.0, le=1.0)
    margin_weight: NonNegativeFloat = 0.05
    ddi_target: float = Field(0.06, gt=0.0, lt=1.0, description="acceptable DDI rate of a visit")
    ddi_scale: NonNegativeFloat = 5e-4
    ddi_normalised: bool = Field(False, description="divide by D(D-1) instead of using ddi_scale")
    gate: Literal["none", "safedrug", "molerec", "scqmed_code", "scqmed_paper", "mmm"] = "molerec"
    gate_temperature: PositiveFloat = Field(2.5, description="tau of the exponential gate")
    gate_kp: PositiveFloat = Field(0.05, description="slope of the linear and tanh gates")


class OptimConfig(Frozen):
    """Optimiser, schedule and stopping rule; the same for every learned model."""

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-5
    epochs: PositiveInt = 50
    patience: PositiveInt = Field(10, description="epochs without a better validation Jaccard")
    batch_patients: PositiveInt = 16
    clip_norm: PositiveFloat | None = 5.0
    threshold: float = Field(0.5, gt=0.0, lt=1.0)


class TrainConfig(Frozen):
    """One recommender, trained and selected on validation Jaccard."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    split: NonNegativeInt = Field(0, description="which of the cohort's saved splits")
    seed: NonNegativeInt = 1203
    device: Literal["auto", "cpu", "cuda"] = "cpu"


# --------------------------------------------------------------------------- machines


class ScalingConfig(Frozen):
    """Workers of a Ray Train run. Never part of a digest."""

    num_workers: PositiveInt = 2
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    max_failures: NonNegativeInt = 3


class PretrainRunConfig(Frozen):
    """What to pre-train (`task`, part of the name) and on how many workers (`scaling`, not)."""

    task: BimodalPretrainConfig
    scaling: ScalingConfig = ScalingConfig()


class FloatRange(Frozen):
    """A continuous parameter."""

    type: Literal["uniform", "loguniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.type == "loguniform" and self.low <= 0:
            raise ValueError(f"loguniform needs low > 0, got {self.low:g}")
        return self


class IntRange(Frozen):
    """A whole-number parameter, both ends included."""

    type: Literal["int"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Choice(Frozen):
    """One of a list of values."""

    type: Literal["choice"]
    values: tuple[int | float | str | bool, ...] = Field(min_length=1)


SearchDimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class Objective(Frozen):
    """A validation metric and its direction."""

    metric: str = "jaccard"
    mode: Literal["max", "min"] = "max"


class AshaConfig(Frozen):
    """Asynchronous successive halving, in epochs."""

    grace_epochs: PositiveInt = 3
    reduction_factor: PositiveInt = Field(3, ge=2)


class TuneConfig(Frozen):
    """A search with Optuna; the first objective also drives ASHA."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    base: TrainConfig
    space: dict[str, SearchDimension]
    objectives: tuple[Objective, ...] = (Objective(),)
    n_trials: PositiveInt = 20
    sampler: Literal["tpe", "random"] = "tpe"
    seed: NonNegativeInt = 0
    asha: AshaConfig | None = AshaConfig()
    max_concurrent: PositiveInt = Field(2, description="trials at a time; not part of the name")
    cpus_per_trial: PositiveInt = 1

    @model_validator(mode="after")
    def _paths_exist(self) -> TuneConfig:
        tree = self.base.model_dump(mode="json")
        for path in self.space:
            node: Any = tree
            for part in path.split("."):
                if not isinstance(node, dict) or part not in node:
                    raise ValueError(
                        f"space path '{path}' names no field of base"
                        + suggest(part, node if isinstance(node, dict) else ())
                    )
                node = node[part]
        return self


class DemoConfig(Frozen):
    """The files that `medrec demo` runs, one after the other."""

    cohort: str
    features: str
    pretrain: str
    tune: str
    train: tuple[str, ...]
