"""CausalMed: causal roles and causal effects of codes (Li et al., CIKM 2024).

Two views of the codes of a visit are mixed per kind of code (diagnoses, procedures, previous
drugs), summed, and followed over time by one GRU per kind:

(a) roles: a code's place among the visit's codes of its kind in a causal graph (root, middle, leaf
    or isolated) selects one of four learned masks on its embedding;
(b) effects: a relational GCN of two layers on the bipartite graph between the visit's codes and the
    previous visit's drugs; the relation of an edge is the kind of the code and the level of its
    estimated effect on the drug.

Differences from the released code:

* There the graph of a visit is learned on columns that include the visit's *true drugs*, for test
  visits too, so that it carries the target. Here one graph is learned once, on training visits,
  over the ``n_discovery_codes`` most frequent diagnoses and procedures (`medrec.models.causality`:
  the same algorithm, from causal-learn, with limits), and a visit's graph is the part of it that
  lies on the visit's own codes. Codes outside the graph are isolated. Drugs are not in the graph;
  the embedding of a previous drug has one mask for all.
* Effects come from one logistic regression per drug on all codes of the visit, on training visits.
  Levels are quantiles, separately for diagnoses and procedures.
* The relational GCN has no biases, and its share in the mixture starts at 0.1: summed over a visit
  its states are large and would saturate the GRUs.
* Each GRU state enters the output layer once, not twice. The penalty with the "0-norm" has no
  gradient and is left out. The best epoch's weights are a copy.

The relational GCN: ``h' = W_0 h + sum_r mean over the neighbours by r of W_r h``, ReLU between the
layers, none at the end. The last layer is therefore linear, and the sum over a visit's nodes is
taken before its matrices are applied; that is the same number, at a fraction of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medrec.config import CausalMedModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from medrec.models.causality import causal_graph, code_effects, code_matrix, effect_levels

N_ROLES = 4
"""0 isolated, 1 root, 2 leaf, 3 middle."""


@dataclass(frozen=True)
class VisitGraph:
    """Bipartite graphs of all visits of a batch between codes and previous drugs.

    Attributes
    ----------
    code, drug : LongTensor (n_edges,)
        Ends of each edge, as positions among the code instances and the drug instances.
    relation : LongTensor (n_edges,)
        Relation of each edge.
    """

    code: torch.Tensor
    drug: torch.Tensor
    relation: torch.Tensor


class RelationalLayer(nn.Module):
    """Matrices of one layer: one for the node itself and one per relation."""

    def __init__(self, d_model: int, n_relations: int) -> None:
        super().__init__()
        self.own = nn.Linear(d_model, d_model, bias=False)
        self.relations = nn.Parameter(torch.empty(n_relations, d_model, d_model))
        nn.init.xavier_uniform_(self.relations)


class CausalMed(Recommender):
    """See the module's text."""

    graph_place: torch.Tensor
    parents: torch.Tensor
    levels: torch.Tensor

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Causal graph and effect levels, from the training visits."""
        model = config.model
        assert isinstance(model, CausalMedModelConfig)
        codes = code_matrix(data)
        chosen, edges = causal_graph(codes, model.n_discovery_codes, model.pairs_per_code)
        effects = code_effects(codes, data)
        split = data.context.n_diagnoses
        levels = torch.cat(
            [
                torch.from_numpy(effect_levels(effects[:split], model.n_effect_levels)),
                torch.from_numpy(effect_levels(effects[split:], model.n_effect_levels))
                + model.n_effect_levels,
            ]
        )
        return {
            "graph_codes": torch.from_numpy(chosen),
            "graph_edges": torch.from_numpy(edges),
            "effect_levels": levels.to(torch.uint8),
        }

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, CausalMedModelConfig)
        d, n_drugs = model.d_model, context.n_drugs
        n_codes = context.n_diagnoses + context.n_procedures
        self.n_relations = 2 * model.n_effect_levels
        self._register(context, n_codes)
        self.codes = nn.Embedding(max(n_codes, 1), d)
        self.drugs = nn.Embedding(n_drugs, d)
        for table in (self.codes, self.drugs):
            nn.init.uniform_(table.weight, -0.1, 0.1)
        # per kind of code and role; drugs have one
        self.masks = nn.Parameter(torch.randn(2 * N_ROLES + 1, d) * 0.1 + 1.0)
        self.first = RelationalLayer(d, self.n_relations)
        self.last = RelationalLayer(d, self.n_relations)
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.1]] * 3))
        self.grus = nn.ModuleList(nn.GRU(d, d, batch_first=True) for _ in range(3))
        self.dropout = nn.Dropout(model.dropout)
        self.output = nn.Sequential(nn.ReLU(), nn.Linear(3 * d, n_drugs))

    def _register(self, context: DrugContext, n_codes: int) -> None:
        """Keep what was fitted; edges between kinds play no part in a visit's sub-graphs."""
        chosen = context.fitted["graph_codes"]
        edges = context.fitted["graph_edges"]
        kind = (chosen >= context.n_diagnoses).to(torch.uint8)
        same = kind.unsqueeze(0) == kind.unsqueeze(1)
        place = torch.full((n_codes,), -1, dtype=torch.long, device=chosen.device)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        self.register_buffer("graph_place", place)
        self.register_buffer("parents", (edges & same).float())
        self.register_buffer("levels", context.fitted["effect_levels"].long())

    # ------------------------------------------------------------------ graph of a visit

    def roles(self, code: torch.Tensor, visit: torch.Tensor, flat: int) -> torch.Tensor:
        """Role of every code instance among the codes of its visit (n,)."""
        place = self.graph_place[code]
        known = place >= 0
        present = torch.zeros(flat, len(self.parents), device=code.device)
        present[visit[known], place[known]] = 1.0
        role = torch.zeros_like(code)
        row, column = visit[known], place[known]
        has_parent = ((present @ self.parents)[row, column] > 0).long()
        has_child = ((present @ self.parents.T)[row, column] > 0).long()
        role[known] = has_child + 2 * has_parent
        return role

    def visit_graph(
        self, code: torch.Tensor, visit: torch.Tensor, before: torch.Tensor
    ) -> VisitGraph:
        """Edges between the codes and the previous drugs (flat, D) of every visit."""
        number = (before.flatten().cumsum(0) - 1.0).long().reshape(before.shape)
        end, drug = before[visit].nonzero(as_tuple=True)
        relation = self.levels[code[end], drug]
        return VisitGraph(end, number[visit[end], drug], relation)

    # ------------------------------------------------------------------ forward

    def forward(self, batch: VisitBatch, drugs: None = None) -> Prediction:
        """Predict all visits in one causal pass."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        n_diagnoses = len(batch.diagnoses.index)
        code = torch.cat([batch.diagnoses.index, batch.procedures.index + self.context.n_diagnoses])
        visit = torch.cat([batch.diagnoses.visit, batch.procedures.visit])
        before = batch.drugs_before.reshape(flat, -1)
        drug_visit, drug = before.nonzero(as_tuple=True)
        h_code, h_drug = self.dropout(self.codes(code)), self.dropout(self.drugs(drug))
        role = self.roles(code, visit, flat)
        role[n_diagnoses:] += N_ROLES
        # kind of each node times visit: where its vector is added up
        target = torch.cat([visit, drug_visit + 2 * flat])
        target[n_diagnoses : len(code)] += flat
        masked = torch.cat([h_code * self.masks[role], h_drug * self.masks[-1]])
        summed = masked.new_zeros(3 * flat, masked.shape[1]).index_add_(0, target, masked)
        graph = self.visit_graph(code, visit, before)
        effects = self._effects(h_code, h_drug, graph, target, 3 * flat)
        mixed = self.mix[:, :1].unsqueeze(1) * summed.reshape(3, flat, -1)
        mixed = mixed + self.mix[:, 1:].unsqueeze(1) * effects.reshape(3, flat, -1)
        states = [
            gru(vectors.reshape(n_patients, n_visits, -1))[0]
            for gru, vectors in zip(self.grus, mixed, strict=True)
        ]
        return self.decide(self.output(torch.cat(states, dim=-1)))

    def _effects(
        self,
        h_code: torch.Tensor,
        h_drug: torch.Tensor,
        graph: VisitGraph,
        target: torch.Tensor,
        n_sums: int,
    ) -> torch.Tensor:
        """Sum of the relational GCN's last states over the nodes of each kind and visit."""
        n_codes, n_nodes = len(h_code), len(h_code) + len(h_drug)
        # both directions of every edge, with the mean over the neighbours by a relation
        source = torch.cat([graph.code, graph.drug + n_codes])
        sink = torch.cat([graph.drug + n_codes, graph.code])
        relation = graph.relation.repeat(2)
        count = torch.bincount(sink * self.n_relations + relation)
        share = 1.0 / count[sink * self.n_relations + relation].to(h_code.dtype)
        h = torch.cat([h_code, h_drug])
        message = _messages(h, self.first.relations, source, sink, relation, share)
        h = torch.relu(self.first.own(h) + message)
        h = self.dropout(h)
        own = h.new_zeros(n_sums, h.shape[1]).index_add_(0, target, h)
        own = self.last.own(own)
        # a source's weight is the sum of its shares at all its sinks; sinks of a source are of one
        # kind, or of two kinds by different relations, so that relation and visit say where it goes
        weight = h.new_zeros(n_nodes * self.n_relations).index_add_(
            0, source * self.n_relations + relation, share
        )
        return own + self._gathered(h, weight.reshape(n_nodes, -1), target, n_sums, n_codes)

    def _gathered(
        self,
        h: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        n_sums: int,
        n_codes: int,
    ) -> torch.Tensor:
        """Messages of the last layer, summed over the sinks of each kind and visit."""
        flat, d, half = n_sums // 3, h.shape[1], self.n_relations // 2
        visit = target % flat
        relations = self.last.relations
        outgoing = h.new_zeros(flat, self.n_relations * d).index_add_(
            0, visit[n_codes:], _outer(h[n_codes:], weight[n_codes:])
        )
        outgoing = outgoing.reshape(flat, self.n_relations, d)
        to_diagnoses = torch.einsum("vrd,rde->ve", outgoing[:, :half], relations[:half])
        to_procedures = torch.einsum("vrd,rde->ve", outgoing[:, half:], relations[half:])
        incoming = h.new_zeros(flat, self.n_relations * d).index_add_(
            0, visit[:n_codes], _outer(h[:n_codes], weight[:n_codes])
        )
        to_drugs = incoming @ relations.reshape(-1, d)
        return torch.cat([to_diagnoses, to_procedures, to_drugs])


def _outer(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted copies of node vectors, one per relation (n, R * d)."""
    return (weight.unsqueeze(2) * h.unsqueeze(1)).flatten(1)


def _messages(
    h: torch.Tensor,
    relations: torch.Tensor,
    source: torch.Tensor,
    sink: torch.Tensor,
    relation: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Messages that reach every node (n, d): the matrices are applied once per node, not edge."""
    n_relations, d = relations.shape[:2]
    table = (h @ relations.permute(1, 0, 2).reshape(d, -1)).reshape(-1, d)
    order = torch.argsort(sink)
    counts = torch.bincount(sink, minlength=len(h))
    return nn.functional.embedding_bag(
        (source * n_relations + relation)[order],
        table,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=share[order],
    )
