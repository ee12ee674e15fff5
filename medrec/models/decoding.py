"""Lists of drugs decoded one by one: their order, their padding, and one beam over all visits.

A list is turned into tokens: drugs are 0 to D-1, and D is the start token of an input and the END
token of an output. END belongs to no recommended set.

How long a decoded list gets depends on the order of the lists it was trained on more than on the
probabilities: a model that gives the right number of drugs when lists are drawn from it can list
twice as many when the likeliest next token is taken. `ListRecommender.tune` therefore chooses a
bias of END on validation visits, as the other models choose their threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from medrec.config import TrainConfig
from medrec.data.dataset import VisitBatch, VisitDataset
from medrec.evaluation.threshold import macro_jaccard
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from quantum.base import InputError

DrugOrder = Literal["rare_first", "frequent_first", "vocabulary"]
Ranking = Literal["mean", "max", "own_step"]
END_BIASES = (0.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def drug_counts(data: FittingData) -> torch.Tensor:
    """Number of training visits of each drug (D,)."""
    drugs, _ = data.dataset.drugs.gather(data.dataset.visit_numbers(data.patients))
    return torch.bincount(torch.from_numpy(drugs), minlength=data.dataset.n_drugs)


def drug_order(counts: torch.Tensor, order: DrugOrder) -> torch.Tensor:
    """Drugs (D,) in the order of all target lists; equal counts follow the vocabulary."""
    if order == "vocabulary":
        return torch.arange(len(counts), device=counts.device)
    return torch.argsort(counts, descending=order == "frequent_first", stable=True)


@dataclass
class PaddedSets:
    """Sets of codes of n rows, padded.

    Attributes
    ----------
    index : LongTensor (n, C)
        Codes; 0 where there is none.
    mask : BoolTensor (n, C)
        True where there is a code.
    place : LongTensor (n_codes,)
        Position of each code in the flattened (n, C).
    """

    index: torch.Tensor
    mask: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, codes: torch.Tensor, row: torch.Tensor, n_rows: int) -> PaddedSets:
        """Pad codes whose rows are given; codes of a row keep their order."""
        order = torch.argsort(row, stable=True)
        codes, row = codes[order], row[order]
        sizes = torch.bincount(row, minlength=n_rows)
        width = max(int(sizes.max()), 1) if n_rows else 1
        starts = torch.cumsum(sizes, 0) - sizes
        place = row * width + torch.arange(len(row), device=row.device) - starts[row]
        index = torch.zeros(n_rows * width, dtype=torch.long, device=row.device)
        mask = torch.zeros(n_rows * width, dtype=torch.bool, device=row.device)
        index[place], mask[place] = codes, True
        return cls(index.reshape(n_rows, width), mask.reshape(n_rows, width), place)


@dataclass
class DrugLists:
    """Target lists of n visits for teacher forcing; L is the longest list and its END.

    Attributes
    ----------
    inputs : LongTensor (n, L)
        Start token, then the drugs.
    outputs : LongTensor (n, L)
        Drugs, then END.
    lengths : LongTensor (n,)
        Drugs and END.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, target: torch.Tensor, order: torch.Tensor) -> DrugLists:
        """Lists of the sets (n, D) of 0 and 1, sorted as ``order`` (D,) says."""
        n, n_drugs = target.shape
        row, position = (target[:, order] > 0.5).nonzero(as_tuple=True)
        drugs = PaddedSets.of(order[position], row, n)
        drugs.index.masked_fill_(~drugs.mask, n_drugs)
        edge = torch.full((n, 1), n_drugs, dtype=torch.long, device=target.device)
        return cls(
            torch.cat([edge, drugs.index], dim=1),
            torch.cat([drugs.index, edge], dim=1),
            drugs.mask.sum(dim=1) + 1,
        )


class StepDecoder(Protocol):
    """State of a decoder for a visits and w hypotheses of each."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take in the newest tokens (a, w); probabilities of the next drug or END (a, w, D + 1)."""

    def select(self, visits: torch.Tensor | None, parents: torch.Tensor) -> None:
        """Keep some visits, all if None; their hypotheses go on from ``parents`` (a, w)."""


@dataclass
class _Beam:
    """Hypotheses of the visits that are not finished, the best one first.

    Attributes
    ----------
    visits : LongTensor (a,)
        Their numbers.
    tokens : LongTensor (a, w)
        Newest token of each hypothesis.
    scores : FloatTensor (a, w)
        Log-probability.
    ended : BoolTensor (a, w)
    n_steps : FloatTensor (a, w)
        Tokens, END included.
    listed : BoolTensor (a, w, D)
    rank : FloatTensor (a, w, D)
        Sum or maximum over steps of the step's probabilities.
    """

    visits: torch.Tensor
    tokens: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor
    n_steps: torch.Tensor
    listed: torch.Tensor
    rank: torch.Tensor

    @classmethod
    def start(cls, n: int, width: int, n_drugs: int, device: torch.device) -> _Beam:
        """One live hypothesis per visit, that of the empty list."""
        scores = torch.full((n, width), -torch.inf, device=device)
        scores[:, 0] = 0.0
        return cls(
            torch.arange(n, device=device),
            torch.full((n, width), n_drugs, device=device),
            scores,
            torch.zeros(n, width, dtype=torch.bool, device=device),
            torch.zeros(n, width, device=device),
            torch.zeros(n, width, n_drugs, dtype=torch.bool, device=device),
            torch.zeros(n, width, n_drugs, device=device),
        )

    def observe(self, probs: torch.Tensor, ranking: Ranking) -> None:
        """Take a step's probabilities (a, w, D + 1) into the ranks of the lists still growing."""
        growing = ~self.ended
        self.n_steps = self.n_steps + growing
        drugs = probs[..., :-1] * growing.unsqueeze(-1)
        if ranking == "mean":
            self.rank = self.rank + drugs
        else:
            self.rank = torch.maximum(self.rank, drugs.masked_fill(self.listed, 0.0))

    def extend(self, probs: torch.Tensor, ranking: Ranking) -> torch.Tensor:
        """Append the best drugs or ENDs; parents (a, w) of the new hypotheses."""
        n, width, n_tokens = probs.shape
        log_probs = probs.log()
        log_probs[..., :-1].masked_fill_(self.listed | self.ended.unsqueeze(-1), -torch.inf)
        log_probs[..., -1].masked_fill_(self.ended, 0.0)
        total = (self.scores.unsqueeze(-1) + log_probs).reshape(n, -1)
        self.scores, best = total.topk(width, dim=1)
        parents = torch.div(best, n_tokens, rounding_mode="floor")
        self.tokens = best - parents * n_tokens
        self._follow(parents)
        ended = self.tokens == n_tokens - 1
        chosen = torch.nn.functional.one_hot(self.tokens, n_tokens)[..., :-1].bool()
        self.listed, self.ended = self.listed | chosen, self.ended | ended
        if ranking == "own_step":
            own = probs.reshape(n, -1).gather(1, best).unsqueeze(-1)
            self.rank = torch.where(chosen, own, self.rank)
        return parents

    def _follow(self, parents: torch.Tensor) -> None:
        if parents.shape[1] == 1:
            return
        self.ended = self.ended.gather(1, parents)
        self.n_steps = self.n_steps.gather(1, parents)
        wide = parents.unsqueeze(-1).expand(self.rank.shape)
        self.listed, self.rank = self.listed.gather(1, wide), self.rank.gather(1, wide)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the visits that are not in ``rows``."""
        for name in ("visits", "tokens", "scores", "ended", "n_steps", "listed", "rank"):
            setattr(self, name, getattr(self, name)[rows])


@dataclass
class Decoded:
    """Recommended sets (n, D) of bool, and the probabilities (n, D) that rank all drugs."""

    selected: torch.Tensor
    probs: torch.Tensor


@torch.no_grad()
def beam_search(
    decoder: StepDecoder,
    n_visits: int,
    n_drugs: int,
    *,
    width: int,
    max_drugs: int,
    ranking: Ranking,
    device: torch.device,
    end_bias: float = 0.0,
) -> Decoded:
    """Decode the lists of all visits together; width 1 is the greedy search.

    No drug is listed twice. The score of a list is its log-probability, END included. A visit is
    finished when its best hypothesis has ended: no other can overtake it any more. Finished
    visits leave the batch.

    Parameters
    ----------
    max_drugs : int
        A list of this size ends, without asking for END.
    end_bias : float
        Added to the logit of END before lists are compared; ranks are made without it.
    ranking : {"mean", "max", "own_step"}
        Mean over the steps of the list found (the one that gave END included) of the steps'
        probabilities; or their maximum, for a listed drug until it was listed; or the same, but
        for a listed drug the probability with which it was listed.
    """
    found = Decoded(
        torch.zeros(n_visits, n_drugs, dtype=torch.bool, device=device),
        torch.zeros(n_visits, n_drugs, device=device),
    )
    beam = _Beam.start(n_visits, width, n_drugs, device)
    for step in range(max_drugs):
        probs = decoder.step(beam.tokens)
        beam.observe(probs, ranking)
        parents = beam.extend(_favour_end(probs, end_bias), ranking)
        over = beam.ended[:, 0] | (step == max_drugs - 1)
        rest = None
        if bool(over.any()):
            _store(found, beam, over, ranking)
            rest = (~over).nonzero().squeeze(1)
            beam.keep(rest)
            parents = parents[rest]
        if len(beam.visits) == 0:
            break
        decoder.select(rest, parents)
    return found


def _favour_end(probs: torch.Tensor, bias: float) -> torch.Tensor:
    """Probabilities with a bias added to the logit of END."""
    if bias == 0.0:
        return probs
    weights = probs.clone()
    weights[..., -1] *= math.exp(bias)
    return weights / weights.sum(dim=-1, keepdim=True)


def _store(found: Decoded, beam: _Beam, over: torch.Tensor, ranking: Ranking) -> None:
    visits, rank = beam.visits[over], beam.rank[over, 0]
    found.selected[visits] = beam.listed[over, 0]
    if ranking == "mean":
        rank = rank / beam.n_steps[over, 0].unsqueeze(1)
    found.probs[visits] = rank


class ListRecommender(Recommender):
    """A recommender that decodes a list per visit.

    Parameters
    ----------
    order : {"rare_first", "frequent_first", "vocabulary"}
        Of the target lists; needs ``drug_counts`` in the fitted context.
    width, width_in_training : int
        Of the beam, after training and in the validation of each epoch.
    max_drugs : int
    ranking : {"mean", "max", "own_step"}
    tune_end : bool
        Whether `tune` chooses the bias of END.
    """

    thresholded: ClassVar[bool] = False
    order: torch.Tensor
    width: torch.Tensor
    end_bias: torch.Tensor

    def __init__(
        self,
        config: TrainConfig,
        context: DrugContext,
        *,
        order: DrugOrder,
        width: int,
        width_in_training: int,
        max_drugs: int,
        ranking: Ranking,
        tune_end: bool,
    ) -> None:
        super().__init__(config, context)
        name = config.model.name
        if "drug_counts" not in context.fitted:
            raise InputError(f"{name} needs drug counts of the training visits; see fit_context")
        counts = context.fitted["drug_counts"]
        self.register_buffer("order", drug_order(counts, order), persistent=False)
        self.register_buffer("width", torch.tensor(width_in_training))
        self.register_buffer("end_bias", torch.tensor(0.0))
        self.final_width, self.tune_end = width, tune_end
        self.max_drugs, self.ranking = min(max_drugs, context.n_drugs), ranking

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Count the drugs of the training visits."""
        return {"drug_counts": drug_counts(data)}

    def undecoded(self, batch: VisitBatch, extras: dict[str, torch.Tensor]) -> Prediction:
        """What `forward` gives in training: hidden states, and logits of no drug."""
        empty = torch.zeros(*batch.shape, 0, device=batch.mask.device)
        return Prediction(empty, empty, empty.bool(), extras)

    @torch.no_grad()
    def decode(
        self,
        batch: VisitBatch,
        start: Callable[[int], StepDecoder],
        extras: dict[str, torch.Tensor],
    ) -> Prediction:
        """Decode all visits; ``start`` makes the decoder for a beam's width."""
        width, n_drugs, mask = int(self.width), self.context.n_drugs, batch.mask
        decoded = beam_search(
            start(width),
            int(mask.sum()),
            n_drugs,
            width=width,
            max_drugs=self.max_drugs,
            ranking=self.ranking,
            device=mask.device,
            end_bias=float(self.end_bias),
        )
        probs = torch.zeros(*batch.shape, n_drugs, device=mask.device)
        selected = torch.zeros(*batch.shape, n_drugs, dtype=torch.bool, device=mask.device)
        probs[mask], selected[mask] = decoded.probs, decoded.selected
        return Prediction(torch.logit(probs, eps=1e-6), probs, selected, extras)

    def tune(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Switch to the final beam and choose the bias of END with the best Jaccard."""
        self.width.fill_(self.final_width)
        if not self.tune_end or len(patients) == 0:
            return
        batches = list(dataset.batches(patients, 64))
        scores: dict[float, float] = {}

        def best() -> float:
            return max(scores, key=lambda bias: (scores[bias], -abs(bias)))

        for bias in END_BIASES:
            scores[bias] = self._jaccard(bias, batches)
        for bias in (best() - 0.5, best() + 0.5):
            scores[bias] = self._jaccard(bias, batches)
        self.end_bias.fill_(best())

    def _jaccard(self, bias: float, batches: list[VisitBatch]) -> float:
        self.end_bias.fill_(bias)
        parts = []
        for batch in batches:
            mask = batch.mask
            selected = self.predict(batch.to(self.end_bias.device)).selected.cpu()[mask]
            patient = batch.patient.unsqueeze(1).expand(mask.shape)[mask]
            parts.append((selected, batch.target[mask] > 0.5, batch.n_unseen[mask], patient))
        columns = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return macro_jaccard(*columns)
