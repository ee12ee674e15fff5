"""All recommenders by name. A plain table: "go to definition" always works."""

from __future__ import annotations

from medrec.config import TrainConfig
from medrec.models.base import CountingModel, DrugContext, Recommender
from medrec.models.linear import CopyFrequency, CopyLast, LogisticRegression, TopK
from medrec.models.molerec import MoleRec

COUNTING_MODELS: dict[str, type] = {
    "topk": TopK,
    "copy_last": CopyLast,
    "copy_frequency": CopyFrequency,
    "logistic_regression": LogisticRegression,
}
LEARNED_MODELS: dict[str, type[Recommender]] = {"molerec": MoleRec}


def build_model(config: TrainConfig, context: DrugContext) -> Recommender | CountingModel:
    """Build a model by the name in its configuration, which has been validated before."""
    name = config.model.name
    if name in LEARNED_MODELS:
        return LEARNED_MODELS[name](config, context)
    model: CountingModel = COUNTING_MODELS[name](config, context)
    return model
