"""All recommenders by name. A plain table: "go to definition" always works."""

from __future__ import annotations

from medrec.config import TrainConfig
from medrec.models.base import CountingModel, DrugContext, Recommender
from medrec.models.bimorec import BiMoRec
from medrec.models.causalmed import CausalMed
from medrec.models.cognet import COGNet
from medrec.models.depot import Depot
from medrec.models.ecc import ECC
from medrec.models.gamenet import GAMENet
from medrec.models.leap import Leap
from medrec.models.linear import CopyFrequency, CopyLast, LogisticRegression, TopK
from medrec.models.micron import Micron
from medrec.models.mmm import MMM
from medrec.models.molerec import MoleRec
from medrec.models.retain import Retain
from medrec.models.safedrug import SafeDrug
from medrec.models.scqmed import SCQMed
from medrec.models.udc import UDC

COUNTING_MODELS: dict[str, type] = {
    "topk": TopK,
    "copy_last": CopyLast,
    "copy_frequency": CopyFrequency,
    "logistic_regression": LogisticRegression,
    "ecc": ECC,
}
LEARNED_MODELS: dict[str, type[Recommender]] = {
    "bimorec": BiMoRec,
    "causalmed": CausalMed,
    "cognet": COGNet,
    "depot": Depot,
    "gamenet": GAMENet,
    "leap": Leap,
    "micron": Micron,
    "mmm": MMM,
    "molerec": MoleRec,
    "retain": Retain,
    "udc": UDC,
    "safedrug": SafeDrug,
    "scqmed": SCQMed,
}


def build_model(config: TrainConfig, context: DrugContext) -> Recommender | CountingModel:
    """Build a model by the name in its configuration, which has been validated before."""
    name = config.model.name
    if name in LEARNED_MODELS:
        return LEARNED_MODELS[name](config, context)
    model: CountingModel = COUNTING_MODELS[name](config, context)
    return model
