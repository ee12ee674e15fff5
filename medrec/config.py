"""Every configuration class; `medrec.loading` reads them from YAML.

One YAML file is one complete run, minus the defaults, which live in these classes and nowhere
else. Files do not inherit from each other: what you read is what runs. No PyTorch here. Records,
recommenders, molecules and searches have files of their own; import everything from here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from medrec.config_cross import CrossConfig, CrossRepresentation
from medrec.config_data import (
    CohortConfig,
    DdiConfig,
    DrugMapsConfig,
    EicuSource,
    MedsSource,
    Mimic3Source,
    Mimic4Source,
    RecordSource,
    SyntheticSource,
)
from medrec.config_models import (
    CausalMedModelConfig,
    COGNetModelConfig,
    CopyFrequencyModelConfig,
    CopyLastModelConfig,
    DepotModelConfig,
    ECCModelConfig,
    GAMENetModelConfig,
    LeapModelConfig,
    LogisticRegressionModelConfig,
    LossConfig,
    MicronModelConfig,
    ModelConfig,
    MoleRecModelConfig,
    OptimConfig,
    RetainModelConfig,
    SafeDrugModelConfig,
    TopKModelConfig,
    TrainConfig,
    UDCModelConfig,
)
from medrec.config_molecules import (
    ContrastiveTaskConfig,
    FitConfig,
    LibraryConfig,
    MaskingTaskConfig,
    MoleculeEncoderConfig,
    MoleculePretrainConfig,
    PredictTaskConfig,
    PropertyConfig,
    SplitConfig,
)
from medrec.config_papers import (
    BiMoRecModelConfig,
    ConceptConfig,
    GraphConfig,
    MMMModelConfig,
    QuantiserConfig,
    RepresentationConfig,
    SCQMedModelConfig,
    TextConfig,
)
from medrec.config_search import (
    AshaConfig,
    Choice,
    FloatRange,
    IntRange,
    Objective,
    PropertyTuneConfig,
    SearchConfig,
    SearchDimension,
    TuneConfig,
)
from medrec.config_study import StudyConfig, StudySystem
from quantum.base import Frozen
from quantum.schema import LEVELS, Level, PipelineSpec, Resources

__all__ = [
    "AshaConfig",
    "BiMoRecModelConfig",
    "BimodalPretrainConfig",
    "COGNetModelConfig",
    "CausalMedModelConfig",
    "Choice",
    "CohortConfig",
    "ConceptConfig",
    "ContrastiveTaskConfig",
    "CopyFrequencyModelConfig",
    "CopyLastModelConfig",
    "CrossConfig",
    "CrossRepresentation",
    "DdiConfig",
    "DemoConfig",
    "DepotModelConfig",
    "DrugMapsConfig",
    "ECCModelConfig",
    "EicuSource",
    "EncoderConfig",
    "FeatureRunConfig",
    "FitConfig",
    "FloatRange",
    "GAMENetModelConfig",
    "GraphConfig",
    "IntRange",
    "LeapModelConfig",
    "LibraryConfig",
    "LogisticRegressionModelConfig",
    "LossConfig",
    "MMMModelConfig",
    "MaskingTaskConfig",
    "MedsSource",
    "MicronModelConfig",
    "Mimic3Source",
    "Mimic4Source",
    "ModelConfig",
    "MoleRecModelConfig",
    "MoleculeEncoderConfig",
    "MoleculePretrainConfig",
    "MoleculePretrainRunConfig",
    "Objective",
    "OptimConfig",
    "PredictTaskConfig",
    "PretrainRunConfig",
    "PropertyConfig",
    "PropertyRunConfig",
    "PropertyTuneConfig",
    "QuantiserConfig",
    "RecordSource",
    "RepresentationConfig",
    "RetainModelConfig",
    "SCQMedModelConfig",
    "SafeDrugModelConfig",
    "ScalingConfig",
    "SearchConfig",
    "SearchDimension",
    "SplitConfig",
    "StudyConfig",
    "StudySystem",
    "SyntheticSource",
    "TextConfig",
    "TopKModelConfig",
    "TrainConfig",
    "TuneConfig",
    "UDCModelConfig",
]

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
    max_in_flight: PositiveInt | None = Field(
        None, description="pieces of work submitted at a time; null: twice what the cluster holds"
    )
    interrupt_grace_s: NonNegativeFloat = Field(
        10.0, description="after Ctrl-C, seconds that running calculations have to finish"
    )

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
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="of the 2D encoders")
    gvp_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="in the 3D convolutions")
    head_dropout: float = Field(0.25, ge=0.0, lt=1.0, description="after the 3D read-out")
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


# --------------------------------------------------------------------------- machines


class ScalingConfig(Frozen):
    """Workers of a Ray Train run. Never part of a digest."""

    num_workers: PositiveInt = 2
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    max_failures: NonNegativeInt = 3
    min_workers: PositiveInt | None = Field(
        None, description="go on with fewer workers, down to these, while nodes are away (GPU)"
    )

    @model_validator(mode="after")
    def _elastic(self) -> ScalingConfig:
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above num_workers {self.num_workers}"
            )
        if not self.use_gpu:
            raise ValueError("min_workers needs use_gpu: Ray resizes groups of GPU workers only")
        return self


class PretrainRunConfig(Frozen):
    """What to pre-train (`task`, part of the name) and on how many workers (`scaling`, not)."""

    task: BimodalPretrainConfig
    scaling: ScalingConfig = ScalingConfig()


class MoleculePretrainRunConfig(Frozen):
    """Pre-training of an encoder on a molecule library, and its workers."""

    task: MoleculePretrainConfig
    scaling: ScalingConfig = ScalingConfig(num_workers=1)


class PropertyRunConfig(Frozen):
    """Fine-tuning on the targets of a molecule library, and its workers."""

    task: PropertyConfig
    scaling: ScalingConfig = ScalingConfig(num_workers=1)


class DemoConfig(Frozen):
    """The files that `medrec demo` runs, one after the other."""

    cohort: str
    features: str
    pretrain: str
    tune: str
    train: tuple[str, ...]
