"""BiMoRec: bimodal pre-trained molecules, enhanced in several steps (Mu et al.), batched.

With ℓ_t = MLP([Σ Emb_D ‖ Σ Emb_P] of visit t), a first visit's logits are ℓ_1. At a later visit,
for every earlier visit k with drugs M_k (eq. 12-26; Π is the mean over the molecules of a class)::

    w_k  = σ(W_rel MLP([Σ Emb_D ‖ Σ Emb_P ‖ Σ Emb_M] of visit k))    fragment weights
    G_k  = GIN(molecules), rows of molecules of M_k ← set attention among these rows  (intra-visit)
    Y_k  = softmax(mask(W_Q Π G_k · W_K U / sqrt(d))) diag(w_k) U, U = set attention(GIN(fragments))
    m̂_tk = MLP(diag(σ(ℓ_t)) Y_k)                                                     (latest visit)
    z_t  = MLP(GRU(m̂_t1 .. m̂_t,t-1)) + ℓ_t

Molecule modules have no part in a first visit and get no gradient from it. The two graph networks
may start from a bimodal pre-training run (`medrec.pretrain`), batch-norm buffers included, and go
on learning. Options: ``intra_visit``, ``latest_visit``; both false is the ablation w/o E. No
pre-training run is w/o T: then nothing of 3D structure is known.

How it is computed, with the same numbers as the plain formulas: molecules and fragments are encoded
once per optimiser step; all prefixes of all patients go through one pass; attention changes in the
rows of classes that were given and is shared by all other rows; W_Q is folded into the keys; the
first layer of the score is applied to the fragments, as it commutes with aggregation and gate.

Differences from paper or released code:

* The released code's set attention has its residual on the queries and no ReLU; the paper's form is
  ``sab: paper``. Paper: attend over all molecules, then select (eq. 18). Code, and here: select,
  then attend. One MLP gives ℓ both as gate and as logits, as in the code; the paper writes two.
* A one-layer GRU's last state and last output are one vector. It is fed to the last MLP once; the
  released code feeds it twice, which is D² weights more and no other function.
* Codes of a visit are looked up once, with one dropout mask, for its ℓ and for its w.
* α of the loss stays as the paper has it; the released code changes its temperature with the
  validation score. The released regulariser counts non-zero weights and has no gradient: left out.
* The published w/o E takes fragment weights from the aggregated history, not defined in detail;
  here the per-visit weights and the mean over a class's molecules stay.
* A class without fragments gets a zero vector, not a uniform attention over all fragments. A class
  with one fragment attends to it fully, whatever its molecules: with the representation ``none``
  that holds for all, and vectors of molecules have no effect.
* The released whole-molecule geometries are flat drawings (PubChem's 2D records, all z are 0): what
  was pre-trained on them has seen 3D structure in fragments only. Here every geometry is a
  conformer, and drawings are refused. Vector norms cannot tell mirror images apart, so the 3D
  encoder gives enantiomers one vector where their conformers mirror each other; 2D graphs differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medrec.config import BiMoRecModelConfig, TrainConfig
from medrec.data.dataset import CodeBag, VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import BagEmbedding, MaskedAggregation, SetAttention
from medrec.models.representations import Representation
from quantum.base import InputError

PAIRS_AT_ONCE = 4096  # pairs of visits scored together: 140 MB per tensor at 131 drugs


@dataclass(frozen=True)
class History:
    """Which earlier visits each visit looks back on; places are in the flattened (B, V) batch.

    Attributes
    ----------
    past : LongTensor (n,)
        Places of the visits that have a visit after them.
    target : LongTensor (m,)
        Places of the visits that have a visit before them.
    length : LongTensor (m,)
        Number of visits before each of these.
    pair_past, pair_target : LongTensor (p,)
        Every pair of a visit and an earlier one, as positions in ``past`` and in ``target``.
    step : LongTensor (p,)
        Number of the earlier visit, from 0.
    """

    past: torch.Tensor
    target: torch.Tensor
    length: torch.Tensor
    pair_past: torch.Tensor
    pair_target: torch.Tensor
    step: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> History:
        """Read it off the mask of visits (B, V), which are at the left."""
        n_visits = mask.shape[1]
        patient, length = mask[:, 1:].nonzero(as_tuple=True)
        target = patient * n_visits + length + 1
        past, length = target - 1, length + 1
        number = torch.zeros(mask.numel(), dtype=torch.long, device=mask.device)
        number[past] = torch.arange(len(past), device=mask.device)
        pair_target = torch.repeat_interleave(length)
        first = length.cumsum(0) - length
        step = torch.arange(len(pair_target), device=mask.device) - first[pair_target]
        pair_past = number[(patient * n_visits)[pair_target] + step]
        return cls(past, target, length, pair_past, pair_target, step)


@dataclass
class EncodedDrugs:
    """What the molecules give for all visits; K molecules, S fragments, D classes.

    Attributes
    ----------
    keys : Tensor (S, d)
        Fragment keys with W_Q and 1/sqrt(d) folded in: the score of a class is its vector times it.
    scores : Tensor (D, W)
        Attention scores of each class and its own W fragments at most, before any enhancement.
    values : Tensor (S, h)
        Fragment vectors after the first layer of the score, without its bias.
    molecules, queries, key_rows, value_rows : Tensor (K, d) or None
        Vectors of the molecules and their projections for intra-visit attention.
    """

    keys: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor
    molecules: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    key_rows: torch.Tensor | None = None
    value_rows: torch.Tensor | None = None


class VisitAttention(SetAttention):
    """Set attention among the molecules of each visit; the rows of a set know nothing of others."""

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of all molecules (K, d)."""
        return self.query(x), self.key(x), self.value(x)

    def enhance(self, drugs: EncodedDrugs, members: torch.Tensor) -> torch.Tensor:
        """Vectors (r, d) of the molecules marked in ``members`` (n, K), set after set."""
        assert drugs.molecules is not None
        assert drugs.queries is not None
        assert drugs.key_rows is not None
        assert drugs.value_rows is not None
        index, inside = padded(members)
        n, length = index.shape

        def heads(rows: torch.Tensor) -> torch.Tensor:
            found = rows.index_select(0, index.flatten()).reshape(n, length, self.n_heads, -1)
            return found.transpose(1, 2)

        query, key, value = heads(drugs.queries), heads(drugs.key_rows), heads(drugs.value_rows)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        # the lowest number and not -inf: an empty set must not make a gradient undefined
        scores = scores.masked_fill(~inside[:, None, None], torch.finfo(scores.dtype).min)
        attended = torch.softmax(scores, dim=-1) @ value
        attended = attended.transpose(1, 2).flatten(2)[inside]
        row = index[inside]
        if self.form == "reference":
            hidden = self.norm_1(drugs.queries.index_select(0, row) + attended)
            return self.norm_2(self.dense(hidden))
        hidden = self.norm_1(drugs.molecules.index_select(0, row) + attended)
        return self.norm_2(hidden + torch.relu(self.dense(hidden)))


def padded(members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns marked in each row of (n, K), padded to the longest, and where they are; (n, L)."""
    row, column = members.nonzero(as_tuple=True)
    count = members.sum(dim=1)
    slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    width = int(count.max()) if len(count) else 0
    index = torch.zeros(len(members), width, dtype=torch.long, device=row.device)
    index[row, slot] = column
    return index, torch.arange(width, device=row.device) < count.unsqueeze(1)


class BiMoRec(Recommender):
    """See the module's text."""

    needs_molecules = True
    owners: torch.Tensor
    shares: torch.Tensor

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, BiMoRecModelConfig)
        if context.molecules is None:
            raise InputError("bimorec needs the molecules of the drugs; the context holds none")
        d, n_drugs = model.d_model, context.n_drugs
        self.latest_visit = model.latest_visit
        self.diagnoses = BagEmbedding(context.n_diagnoses, d, model.dropout)
        self.procedures = BagEmbedding(context.n_procedures, d, model.dropout)
        self.drugs = BagEmbedding(n_drugs, d, model.dropout)
        self.representation = Representation(model.representation, context.molecules, d)
        mask = self.representation.fragment_mask
        self.fragment_attention = SetAttention(d, model.n_heads, model.sab)
        self.molecule_attention = (
            VisitAttention(d, model.n_heads, model.sab) if model.intra_visit else None
        )
        self.visit = nn.Sequential(nn.ReLU(), nn.Linear(3 * d, d))
        self.relation = nn.Linear(d, mask.shape[1])
        self.latest = nn.Sequential(
            nn.ReLU(), nn.Linear(2 * d, d), nn.ReLU(), nn.Linear(d, n_drugs)
        )
        self.aggregate = MaskedAggregation(d, mask)
        half, quarter = max(d // 2, 1), max(d // 4, 1)
        self.score_in = nn.Linear(d, half)
        self.score = nn.Sequential(
            nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, 1)
        )
        self.gru = nn.GRU(n_drugs, n_drugs, batch_first=True)
        self.leave = nn.Sequential(nn.ReLU(), nn.Linear(n_drugs, n_drugs))
        owners, is_owner = padded(self.representation.projection.T > 0)
        shares = self.representation.projection.T.gather(1, owners) * is_owner
        self.register_buffer("owners", owners, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Start both graph networks from a bimodal pre-training run, buffers included."""
        self.representation.load_pretrained(state)

    def encode_drugs(self) -> EncodedDrugs:
        """Encode molecules and fragments, and score each class's own fragments."""
        molecules = self.representation.molecules()
        fragments = self.fragment_attention(self.representation.fragments())
        keys, query = self.aggregate.key(fragments), self.aggregate.query
        keys = keys / math.sqrt(molecules.shape[1])
        folded = keys @ query.weight
        scores = self.representation.projection @ molecules @ folded.T + keys @ query.bias
        encoded = EncodedDrugs(
            folded,
            scores.gather(1, self.aggregate.fragment),
            F.linear(fragments, self.score_in.weight),
        )
        if self.molecule_attention is not None:
            encoded.molecules = molecules
            encoded.queries, encoded.key_rows, encoded.value_rows = self.molecule_attention.project(
                molecules
            )
        return encoded

    def forward(self, batch: VisitBatch, drugs: EncodedDrugs) -> Prediction:
        """Predict all visits in one causal pass; drugs of earlier visits are the only ones read."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        codes = torch.cat(
            [self.diagnoses(batch.diagnoses, flat), self.procedures(batch.procedures, flat)], dim=1
        )
        logits = self.latest(codes)
        history = History.of(batch.mask)
        if len(history.past):
            # the drugs of a visit are read where they stand as the next visit's drugs before
            given = batch.drugs_before.flatten(0, 1)[history.past + 1]
            hidden = self.enhanced(codes[history.past], given, drugs)
            gate = torch.sigmoid(logits[history.target]) if self.latest_visit else None
            change = self.summarise(self.rate(hidden, gate, history), history)
            logits = logits.index_add(0, history.target, change)
        return self.decide(logits.reshape(n_patients, n_visits, -1))

    def enhanced(
        self, codes: torch.Tensor, given: torch.Tensor, drugs: EncodedDrugs
    ) -> torch.Tensor:
        """Y_k after the first layer of the score, without its bias.

        Parameters
        ----------
        codes : Tensor (n, 2 d)
            Diagnoses and procedures of earlier visits.
        given : Tensor (n, D)
            Their drugs, 0/1.

        Returns
        -------
        Tensor (D, n, h)
        """
        n = len(given)
        visit, code = given.nonzero(as_tuple=True)
        query = self.visit(torch.cat([codes, self.drugs(CodeBag(code, visit), n)], dim=1))
        weights = torch.sigmoid(self.relation(query))
        index, shape = self.aggregate.fragment.flatten(), self.aggregate.fragment.shape
        scaled = self.attention(given, drugs) * weights[:, index].reshape(n, *shape)
        values = drugs.values.index_select(0, index).reshape(*shape, -1)
        return scaled.transpose(0, 1) @ values

    def attention(self, given: torch.Tensor, drugs: EncodedDrugs) -> torch.Tensor:
        """Attention of every class to its fragments at each visit (n, D, W)."""
        present = self.aggregate.present
        scores = drugs.scores.expand(len(given), *present.shape)
        if self.molecule_attention is not None:
            members = given @ (self.representation.projection > 0).to(given.dtype) > 0
            if members.any():
                scores = self._changed(scores, members, drugs)
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=2) * present

    def _changed(
        self, scores: torch.Tensor, members: torch.Tensor, drugs: EncodedDrugs
    ) -> torch.Tensor:
        """Scores (n, D, W) with the intra-visit enhancement of the molecules in ``members``."""
        assert self.molecule_attention is not None
        assert drugs.molecules is not None
        visit, molecule = members.nonzero(as_tuple=True)
        change = self.molecule_attention.enhance(drugs, members) - drugs.molecules[molecule]
        owners, shares = self.owners[molecule], self.shares[molecule]  # (r, classes of a molecule)
        columns = self.aggregate.fragment[owners].flatten(1)
        by_class = (change @ drugs.keys.T).gather(1, columns).reshape(*owners.shape, -1)
        rows = visit.unsqueeze(1) * scores.shape[1] + owners
        changed = scores.flatten(0, 1).index_add(
            0, rows.flatten(), (by_class * shares.unsqueeze(2)).flatten(0, 1)
        )
        return changed.reshape(scores.shape)

    def rate(
        self, hidden: torch.Tensor, gate: torch.Tensor | None, history: History
    ) -> torch.Tensor:
        """m̂ of every pair of a visit and an earlier one (p, D); ``gate`` is (m, D) or None."""
        if gate is None:
            scores = self.score(hidden + self.score_in.bias).squeeze(2).T
            return scores.index_select(0, history.pair_past)
        columns = gate.T.contiguous()

        def part(past: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            gated = torch.addcmul(
                self.score_in.bias,
                hidden.index_select(1, past),
                columns.index_select(1, target).unsqueeze(2),
            )
            scores: torch.Tensor = self.score(gated).squeeze(2).T
            return scores

        parts = list(
            zip(
                history.pair_past.split(PAIRS_AT_ONCE),
                history.pair_target.split(PAIRS_AT_ONCE),
                strict=True,
            )
        )
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([part(*indices) for indices in parts])
        # many long histories: what is between is computed again on the way back, not kept
        return torch.cat([checkpoint(part, *item, use_reentrant=False) for item in parts])

    def summarise(self, rated: torch.Tensor, history: History) -> torch.Tensor:
        """What the GRU over the earlier visits adds to each visit's logits (m, D)."""
        n_steps = int(history.length.max())
        steps = rated.new_zeros(len(history.target), n_steps, rated.shape[1])
        steps = steps.index_put((history.pair_target, history.step), rated)
        states = self.gru(steps)[0]
        # padding comes after the last visit, so it cannot reach the state that is read
        last = states[torch.arange(len(states), device=states.device), history.length - 1]
        change: torch.Tensor = self.leave(last)
        return change
