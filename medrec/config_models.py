"""Configuration of recommenders, their loss and their training; see `medrec.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from quantum.base import Frozen


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
