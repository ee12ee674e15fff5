"""COGNet: each drug of a list is copied from earlier visits or generated (Wu et al., WWW 2022).

Codes of a visit pass a Transformer encoder layer of their kind (diagnoses, procedures, drugs of an
earlier visit). A Transformer decoder layer reads the drugs listed so far, each the sum of its
embedding and its vector from two graphs (co-prescription minus lambda times interaction, one-hot
drugs, first layer shared), and attends to the visit's diagnoses and procedures. With its state h::

    p(m)     = w p_gen(m) + (1 - w) p_copy(m),         w = logistic(W_f h)
    p_gen    = softmax over drugs and END of W_o h
    p_copy   = softmax over the drugs i of all earlier visits j of
               (W_c h) . e_ij / sqrt(d) + (d_t . d_j + p_t . p_j) / sqrt(d)

d_t and p_t are attention-pooled diagnoses and procedures of visit t. The paper multiplies the
softmax over drugs with a softmax over visits and normalises again; this is the same as the one
softmax of the sum. A visit without earlier drugs only generates. Trained on true lists by
negative log-likelihood, the mean over all tokens of a batch.

What differs from the released code, and why:

- the order of lists (rare first; other orders by ``order``) and the co-prescription graph come
  from training visits only; released: from all visits, the test part's included;
- END and padding are never part of a set, so the number of drugs is not over-counted;
- all visits, hypotheses and earlier visits of a batch are computed together. Tokens have no
  positions and there is one decoder layer, so that keys and values depend on the token alone: they
  are one table over the vocabulary, and the self-attention of a hypothesis is its mask on it.
  The released code decodes the whole prefix again for every hypothesis and step;
- a padded or empty set gets no attention (released: padding of an empty set does).

Decoding: beam of ``beam_width``, no drug twice, scores are log-probabilities without
normalisation by length, as published. While it trains, validation is greedy, as published, unless
``beam_while_training``. `tune` switches the beam on and, with ``tune_end``, chooses a bias of END
on validation visits (see `medrec.models.decoding`; the released code has none); both are stored
with the weights.

Probabilities for ranking: the maximum over the steps of the decoded list of the step's
probability, each drug until it is listed. The released code then overwrites a listed drug's value
by that of its own step: ``rank_listed: own_step``. Neither is a chance that a drug is in the set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import COGNetModelConfig, TrainConfig
from medrec.data.dataset import CodeBag, VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction
from medrec.models.decoding import DrugLists, ListRecommender, PaddedSets
from medrec.models.losses import LossTerms
from medrec.models.transformer import DecoderLayer, Memory, Pooling, SetEncoder
from medrec.molecules.encoders_2d import FastDropout
from quantum.base import InputError


@dataclass
class EncodedVisits:
    """What the decoder sees of n visits.

    Attributes
    ----------
    diagnoses, procedures : Tensor (n, C, d)
        With their masks (n, C).
    memory : Tensor (D + 1, d)
        Graph vectors of the drugs; zero for the start token.
    slots : Tensor (k, S, d)
        Encoded drugs of k earlier visits, with the drugs ``slot_drug`` and mask (k, S).
    pair_visit, pair_set : LongTensor (P,)
        Pairs of a visit and an earlier one, by their rows above.
    pair_score : Tensor (P,)
        Similarity of the two visits.
    """

    diagnoses: torch.Tensor
    diagnosis_mask: torch.Tensor
    procedures: torch.Tensor
    procedure_mask: torch.Tensor
    memory: torch.Tensor
    slots: torch.Tensor
    slot_drug: torch.Tensor
    slot_mask: torch.Tensor
    pair_visit: torch.Tensor
    pair_set: torch.Tensor
    pair_score: torch.Tensor


class COGNet(ListRecommender):
    """See the module's text."""

    graphs: torch.Tensor

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        model, fitted = config.model, context.fitted
        assert isinstance(model, COGNetModelConfig)
        super().__init__(
            config,
            context,
            order=model.order,
            width=model.beam_width,
            width_in_training=model.beam_width if model.beam_while_training else 1,
            max_drugs=model.max_drugs,
            ranking=model.rank_listed,
            tune_end=model.tune_end,
        )
        if "co_prescribed" not in fitted:
            raise InputError(
                "cognet needs the co-prescriptions of training visits; see fit_context"
            )
        d = model.d_model
        graphs = torch.stack([normalised(fitted["co_prescribed"]), normalised(context.ddi)])
        self.register_buffer("graphs", graphs, persistent=False)
        sizes = (context.n_diagnoses, context.n_procedures, context.n_drugs + 1)
        self.diagnoses, self.procedures, self.drugs = (set_encoder(n, model) for n in sizes)
        self.pool_diagnoses, self.pool_procedures = Pooling(d), Pooling(d)
        self.graph = DrugGraphs(context.n_drugs, d, model.embedding_dropout)
        self.decoder = DecoderLayer(d, model.n_heads, model.dropout)
        self.generate = nn.Linear(d, context.n_drugs + 1)
        self.copy_query, self.gate = nn.Linear(d, d), nn.Linear(d, 1)

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Count drugs and mark the pairs that some training visit holds together."""
        visits = data.dataset.visit_numbers(data.patients)
        drugs, row = data.dataset.drugs.gather(visits)
        present = torch.zeros(len(visits), data.dataset.n_drugs)
        present[torch.from_numpy(row), torch.from_numpy(drugs)] = 1.0
        together = (present.T @ present > 0).float().fill_diagonal_(0.0)
        return super().fit_context(config, data) | {"co_prescribed": together}

    def encode_drugs(self) -> torch.Tensor:
        """Graph vectors of the drugs (D, d)."""
        return self.graph(self.graphs)

    def forward(self, batch: VisitBatch, drugs: torch.Tensor) -> Prediction:
        """Encode the visits and, in evaluation mode, decode."""
        encoded = self._encode(batch, drugs)
        extras = dict(vars(encoded))
        if self.training:
            return self.undecoded(batch, extras)
        return self.decode(batch, lambda width: COGNetDecoder(self, encoded, width), extras)

    def _encode(self, batch: VisitBatch, drugs: torch.Tensor) -> EncodedVisits:
        number = torch.cumsum(batch.mask.flatten(), 0) - 1  # of each visit, without padding
        n = int(batch.mask.sum())

        def sets(bag: CodeBag) -> PaddedSets:
            return PaddedSets.of(bag.index, number[bag.visit], n)

        diagnoses, procedures = sets(batch.diagnoses), sets(batch.procedures)
        d_vectors, p_vectors = self.diagnoses(diagnoses), self.procedures(procedures)
        # the drugs of a visit are known from the next visit on
        with_past = batch.mask.clone()
        with_past[:, :1] = False
        set_number = torch.cumsum(with_past.flatten(), 0) - 1
        row, drug = (batch.drugs_before[with_past] > 0.5).nonzero(as_tuple=True)
        slots = PaddedSets.of(drug, row, int(with_past.sum()))
        n_visits = batch.shape[1]
        later, earlier = torch.tril_indices(n_visits, n_visits, -1, device=number.device)
        patient, pair = batch.mask[:, later].nonzero(as_tuple=True)
        start = patient * n_visits
        visit = number[start + later[pair]]
        before = number[start + earlier[pair]]
        d_pool = self.pool_diagnoses(d_vectors, diagnoses.mask)
        p_pool = self.pool_procedures(p_vectors, procedures.mask)
        alike = (d_pool[visit] * d_pool[before]).sum(-1) + (p_pool[visit] * p_pool[before]).sum(-1)
        return EncodedVisits(
            d_vectors,
            diagnoses.mask,
            p_vectors,
            procedures.mask,
            torch.cat([drugs, drugs.new_zeros(1, drugs.shape[1])]),
            self.drugs(slots),
            slots.index,
            slots.mask,
            visit,
            set_number[start + earlier[pair] + 1],
            alike / math.sqrt(drugs.shape[1]),
        )

    def loss(self, batch: VisitBatch, prediction: Prediction) -> LossTerms:
        """Negative log-likelihood of the true lists, END included; the mean over tokens."""
        encoded = EncodedVisits(**prediction.extras)
        lists = DrugLists.of(batch.target[batch.mask], self.order)
        steps = torch.arange(lists.inputs.shape[1], device=lists.lengths.device)
        token = steps < lists.lengths.unsqueeze(1)
        x = self.drugs.embed(lists.inputs) + encoded.memory[lists.inputs]
        hidden = self.decoder(x, *self.memories(encoded), steps <= steps.unsqueeze(1))
        copies = Copies.of(encoded)
        shares = copies.shares(self.copy_query(hidden))
        hits = shares * (copies.drug.unsqueeze(1) == lists.outputs[copies.visit].unsqueeze(2))
        p_copy = hidden.new_zeros(token.shape).index_add(0, copies.visit, hits.sum(-1))[token]
        states = hidden[token]
        p_gen = F.cross_entropy(self.generate(states), lists.outputs[token], reduction="none")
        can_copy = copies.possible.unsqueeze(1).expand(token.shape)[token]
        total = -mix(-p_gen, p_copy, self.gate(states).squeeze(-1), can_copy).mean()
        return LossTerms(total, {"nll": total.detach()})

    def memories(self, encoded: EncodedVisits) -> tuple[Memory, Memory]:
        """Keys and values of the diagnoses and procedures."""
        return self.decoder.memories(
            encoded.diagnoses, encoded.diagnosis_mask, encoded.procedures, encoded.procedure_mask
        )


def set_encoder(n_codes: int, model: COGNetModelConfig) -> SetEncoder:
    """Encoder of one kind of codes."""
    return SetEncoder(
        n_codes,
        model.d_model,
        model.n_heads,
        model.d_feedforward,
        dropout=model.dropout,
        embedding_dropout=model.embedding_dropout,
    )


def mix(
    log_generated: torch.Tensor, copied: torch.Tensor, gate: torch.Tensor, can_copy: torch.Tensor
) -> torch.Tensor:
    """Log-probability of a token: log(w p_gen + (1 - w) p_copy), or log p_gen without a past.

    Parameters
    ----------
    log_generated, copied, gate : Tensor
        log p_gen, p_copy, and the logit of w.
    can_copy : BoolTensor
    """
    log_copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log()
    mixed = torch.logaddexp(F.logsigmoid(gate) + log_generated, F.logsigmoid(-gate) + log_copied)
    return torch.where(can_copy, mixed, log_generated)


def normalised(graph: torch.Tensor) -> torch.Tensor:
    """Graph (D, D) with self-loops, each row divided by its sum."""
    with_loops = graph + torch.eye(len(graph), device=graph.device)
    return with_loops / with_loops.sum(dim=1, keepdim=True)


@dataclass
class Copies:
    """Drugs of earlier visits that n visits may copy, as P pairs of a visit and an earlier one.

    Attributes
    ----------
    visit : LongTensor (P,)
    slots : Tensor (P, S, d)
    drug, mask : LongTensor, BoolTensor (P, S)
    score : Tensor (P,)
        Similarity of the visits.
    possible : BoolTensor (n,)
        Whether a visit has anything to copy.
    """

    visit: torch.Tensor
    slots: torch.Tensor
    drug: torch.Tensor
    mask: torch.Tensor
    score: torch.Tensor
    possible: torch.Tensor

    @classmethod
    def of(cls, encoded: EncodedVisits) -> Copies:
        """Pairs with their slots."""
        sets = encoded.pair_set
        mask = encoded.slot_mask[sets]
        n_slots = torch.zeros(len(encoded.diagnoses), device=sets.device)
        n_slots.index_add_(0, encoded.pair_visit, mask.sum(1).float())
        return cls(
            encoded.pair_visit,
            encoded.slots[sets],
            encoded.slot_drug[sets],
            mask,
            encoded.pair_score,
            n_slots > 0,
        )

    def shares(self, query: torch.Tensor) -> torch.Tensor:
        """Probability of each slot given queries (n, L, d), over all slots of a visit (P, L, S)."""
        asked = query[self.visit] / math.sqrt(query.shape[-1])
        scores = asked @ self.slots.transpose(1, 2) + self.score[:, None, None]
        mask = self.mask.unsqueeze(1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        shape = query.shape[:2]
        with torch.no_grad():
            index = self.visit.unsqueeze(1).expand(-1, shape[1])
            peak = scores.new_full(shape, torch.finfo(scores.dtype).min)
            peak.scatter_reduce_(0, index, scores.amax(-1), "amax")
        powers = torch.exp(scores - peak[self.visit].unsqueeze(2)) * mask
        sums = powers.new_zeros(shape).index_add(0, self.visit, powers.sum(-1))
        return powers / sums.clamp(min=torch.finfo(sums.dtype).tiny)[self.visit].unsqueeze(2)

    def rows(self, visits: torch.Tensor) -> Copies:
        """Only the pairs of some visits, which are numbered anew."""
        number = torch.full_like(self.possible, -1, dtype=torch.long)
        number[visits] = torch.arange(len(visits), device=visits.device)
        visit = number[self.visit]
        pairs = (visit >= 0).nonzero().squeeze(1)
        return Copies(
            visit[pairs],
            self.slots[pairs],
            self.drug[pairs],
            self.mask[pairs],
            self.score[pairs],
            self.possible[visits],
        )


class DrugGraphs(nn.Module):
    """Drug vectors from two graphs: co-prescription minus lambda times interaction."""

    def __init__(self, n_drugs: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(n_drugs, d_model, bias=False)  # of one-hot drugs
        self.first_bias = nn.Parameter(torch.zeros(d_model))
        self.second = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(2))
        self.dropout = FastDropout(dropout)
        self.balance = nn.Parameter(torch.tensor(0.1))

    def forward(self, graphs: torch.Tensor) -> torch.Tensor:
        """Vectors (D, d) from normalised graphs (2, D, D)."""
        hidden = self.dropout(torch.relu(graphs @ self.first.weight.T + self.first_bias))
        together, interacting = (
            graph @ layer(h) for graph, layer, h in zip(graphs, self.second, hidden, strict=True)
        )
        return together - self.balance * interacting


class COGNetDecoder:
    """Lists of a visits with w hypotheses; see `medrec.models.decoding.StepDecoder`."""

    def __init__(self, model: COGNet, encoded: EncodedVisits, width: int) -> None:
        self.model, n = model, len(encoded.diagnoses)
        self.table = model.drugs.table.weight + encoded.memory
        self.keys, self.values = model.decoder.own.keys_values(self.table.unsqueeze(0))
        self.memories = model.memories(encoded)
        self.copies = Copies.of(encoded)
        shape = (n, width, len(self.table))
        self.seen = torch.zeros(shape, dtype=torch.bool, device=self.table.device)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Probabilities of the next drug or END (a, w, D + 1)."""
        self.seen = self.seen.scatter(2, tokens.unsqueeze(2), True)
        x = self.table[tokens]
        # one list of a * w queries: keys and values are the same for all
        own = self.model.decoder.own(
            x.reshape(1, -1, x.shape[2]), self.keys, self.values, self.seen.flatten(0, 1)
        )
        hidden = self.model.decoder.read(x, own.reshape(x.shape), *self.memories)
        generated = torch.softmax(self.model.generate(hidden), dim=-1)
        w = torch.sigmoid(self.model.gate(hidden))
        w = torch.where(self.copies.possible[:, None, None], w, 1.0)
        return w * generated + (1.0 - w) * self._copied(hidden)

    def _copied(self, hidden: torch.Tensor) -> torch.Tensor:
        """Slots' probabilities added up for each drug (a, w, D + 1)."""
        copies, (n, width, _) = self.copies, hidden.shape
        n_tokens = len(self.table)
        shares = copies.shares(self.model.copy_query(hidden))
        row = copies.visit.unsqueeze(1) * width + torch.arange(width, device=hidden.device)
        place = row.unsqueeze(2) * n_tokens + copies.drug.unsqueeze(1)
        flat = hidden.new_zeros(n * width * n_tokens)
        return flat.index_add_(0, place.flatten(), shares.flatten()).reshape(n, width, n_tokens)

    def select(self, visits: torch.Tensor | None, parents: torch.Tensor) -> None:
        """Keep some visits and let their lists go on from their parents."""
        if visits is not None:
            self.seen, self.copies = self.seen[visits], self.copies.rows(visits)
            diagnoses, procedures = self.memories
            self.memories = (_rows(diagnoses, visits), _rows(procedures, visits))
        if parents.shape[1] > 1:
            index = parents.unsqueeze(-1).expand(-1, -1, self.seen.shape[2])
            self.seen = self.seen.gather(1, index)


def _rows(memory: Memory, visits: torch.Tensor) -> Memory:
    keys, values, mask = memory
    return keys[visits], values[visits], mask[visits]
