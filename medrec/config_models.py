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


class ECCModelConfig(Frozen):
    """Ensemble of classifier chains over drugs, on the current visit's codes (scikit-learn)."""

    name: Literal["ecc"] = "ecc"
    n_chains: PositiveInt = 10
    c: PositiveFloat = 1.0
    max_iterations: PositiveInt = 100


class RetainModelConfig(Frozen):
    """RETAIN (Choi et al., NeurIPS 2016): reverse-time attention over visits and codes."""

    name: Literal["retain"] = "retain"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)


class LeapModelConfig(Frozen):
    """LEAP (Zhang et al., KDD 2017): drugs decoded one by one from the current diagnoses."""

    name: Literal["leap"] = "leap"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.3, ge=0.0, lt=1.0)
    max_drugs: PositiveInt = Field(45, description="longest decoded list; the published code: 20")


class GAMENetModelConfig(Frozen):
    """GAMENet (Shang et al., AAAI 2019): graph-augmented memory of drug combinations."""

    name: Literal["gamenet"] = "gamenet"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    ddi_in_memory: bool = Field(True, description="subtract the interaction graph's memory")


class MicronModelConfig(Frozen):
    """MICRON (Yang et al., IJCAI 2021): changes of medication between two visits."""

    name: Literal["micron"] = "micron"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    add_threshold: float = Field(0.8, gt=0.0, lt=1.0)
    remove_threshold: float = Field(0.2, gt=0.0, lt=1.0)
    tune_thresholds: bool = Field(True, description="choose both on validation visits")


class SafeDrugModelConfig(Frozen):
    """SafeDrug (Yang et al., IJCAI 2021): global and local molecule encoders."""

    name: Literal["safedrug"] = "safedrug"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    mpnn_layers: PositiveInt = Field(2, le=12)
    radius: PositiveInt = Field(2, le=6, description="of the Weisfeiler-Lehman fingerprints")
    encoder: Literal["trained", "frozen_random"] = Field(
        "trained", description="the released code never trains its molecule encoder"
    )


class COGNetModelConfig(Frozen):
    """COGNet (Wu et al., WWW 2022): copy or generate each drug of a list."""

    name: Literal["cognet"] = "cognet"
    d_model: PositiveInt = Field(64, le=1024)
    n_heads: PositiveInt = 2
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    embedding_dropout: float = Field(0.3, ge=0.0, lt=1.0)
    d_feedforward: PositiveInt = 2048
    max_drugs: PositiveInt = 45
    beam_width: PositiveInt = 4


class CausalMedModelConfig(Frozen):
    """CausalMed (Li et al., CIKM 2024): causal roles and effects of codes."""

    name: Literal["causalmed"] = "causalmed"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    n_discovery_codes: PositiveInt = Field(
        60, description="most frequent codes among which causal discovery runs"
    )
    n_effect_levels: PositiveInt = 5


class DepotModelConfig(Frozen):
    """DEPOT (Zhao et al., 2024): motif trees, and drugs repeated or newly explored."""

    name: Literal["depot"] = "depot"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    sample_at_test: bool = Field(False, description="the released code draws noise at test time")


class UDCModelConfig(Frozen):
    """UDC (xmed-lab, 2024): discrete codes that rare diagnoses share with frequent ones."""

    name: Literal["udc"] = "udc"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    n_codebooks: PositiveInt = 4
    n_codes: PositiveInt = 64
    commitment: NonNegativeFloat = 0.25


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
    | ECCModelConfig
    | RetainModelConfig
    | LeapModelConfig
    | GAMENetModelConfig
    | MicronModelConfig
    | SafeDrugModelConfig
    | COGNetModelConfig
    | MoleRecModelConfig
    | CausalMedModelConfig
    | DepotModelConfig
    | UDCModelConfig,
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
    encode_every: PositiveInt = Field(
        1,
        description="optimiser steps that share one encoding of the molecules; the encoder then "
        "gets the mean gradient of those steps at once",
    )
    clip_norm: PositiveFloat | None = 5.0
    threshold: float = Field(
        0.5, gt=0.0, lt=1.0, description="in training, and in prediction unless it is tuned"
    )
    tune_threshold: bool = Field(
        True, description="after training, take the threshold with the best validation Jaccard"
    )


class TrainConfig(Frozen):
    """One recommender, trained and selected on validation Jaccard."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    split: NonNegativeInt = Field(0, description="which of the cohort's saved splits")
    seed: NonNegativeInt = 1203
    device: Literal["auto", "cpu", "cuda"] = "cpu"
