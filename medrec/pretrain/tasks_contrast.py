"""Contrastive pre-training: a molecule's 2D vector is to find its own 3D vector in the batch.

For cosine similarities s of projected vectors and a temperature t, molecule i loses::

    log( sum_k exp(s_ik / t) ) - s_ii / t

``nt_xent`` leaves k = i out of the sum, as 3D InfoMax (Staerk et al., ICML 2022) and BiMoRec do, so
that the loss can be negative; ``infonce`` keeps it, so that it cannot. Only 2D vectors look for 3D
vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from medrec.config_molecules import ContrastiveTaskConfig
from medrec.library.batches import MoleculeBatch
from medrec.molecules.encoders_interact import two_layers
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.loop import gather
from medrec.pretrain.problem import LossModel, State


class ContrastiveTask(LossModel):
    """Two towers with a projection each.

    With several workers the 3D vectors of all are gathered; a worker returns the losses of its own
    molecules against all of them, so that the sums over the workers are those of the whole batch,
    and so are the gradients. Out of training nothing is gathered: one worker validates alone.

    Molecules without positions neither look for a vector nor are found. A lone molecule in a batch
    has the loss 0.

    Parameters
    ----------
    encoder : MoleculeEncoder
        Whose pooled vectors are a 2D half and a 3D half.
    config : ContrastiveTaskConfig
    """

    terms = ("contrast",)
    separable = False

    def __init__(self, encoder: MoleculeEncoder, config: ContrastiveTaskConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        d = encoder.d_pooled // 2
        self.project_flat = two_layers(d, d, config.d_projection, nn.ReLU())
        self.project_spatial = two_layers(d, d, config.d_projection, nn.ReLU())
        self._hits: tuple[Tensor, Tensor] | None = None

    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Molecules with positions, float32 (1,)."""
        return batch.placed.sum().float().reshape(1)

    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Sum of the losses of the batch's molecules, float32 (1,)."""
        flat, spatial = self.encoder.pooled(self.encoder(batch), batch).chunk(2, dim=1)
        flat, spatial = self.project_flat(flat), self.project_spatial(spatial)
        with torch.autocast(batch.x.device.type, enabled=False):
            anchors = F.normalize(flat.float(), dim=1)
            others, present, first = self._everyone(F.normalize(spatial.float(), dim=1), batch)
            own = torch.arange(len(anchors), device=anchors.device) + first
            use = batch.placed & (present.sum() > 1)
            similarity = anchors @ others.T
            losses = nt_xent_rows(
                similarity / self.config.temperature,
                own,
                present,
                keep_positive=self.config.loss == "infonce",
            )
        self._hits = (found_first(similarity.detach(), own, present) & use).sum(), use.sum()
        return torch.where(use, losses, 0.0).sum().reshape(1)

    def facts(self, batch: MoleculeBatch, epoch: int) -> dict[str, tuple[float, float]]:
        """Share of molecules that found their own 3D vector first, in the last `forward`."""
        if self._hits is None:
            return {}
        hits, n = torch.stack(self._hits).tolist()
        return {"retrieval_accuracy": (float(hits), float(n))}

    def export(self) -> State:
        """Encoder without the projections."""
        return self.encoder.export()

    def _everyone(self, vectors: Tensor, batch: MoleculeBatch) -> tuple[Tensor, Tensor, int]:
        """3D vectors of all workers (M, d), which of them count (M,), and where one's own begin."""
        if not (self.training and distributed.is_initialized()):
            return vectors, batch.placed, 0
        world_size = distributed.get_world_size()
        largest = torch.tensor(len(vectors), device=vectors.device)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        n = int(largest)
        rows = torch.cat([vectors, batch.placed.unsqueeze(1).float()], dim=1)
        everyone = gather(F.pad(rows, (0, 0, 0, n - len(rows))), world_size)
        return everyone[:, :-1], everyone[:, -1] > 0.5, distributed.get_rank() * n


def nt_xent_rows(logits: Tensor, own: Tensor, present: Tensor, *, keep_positive: bool) -> Tensor:
    """Contrastive loss of each anchor.

    Parameters
    ----------
    logits : FloatTensor (B, M)
        Similarities of anchors and candidates, divided by the temperature.
    own : LongTensor (B,)
        The candidate that belongs to an anchor.
    present : BoolTensor (M,)
        Candidates that count.
    keep_positive : bool
        Whether an anchor's own candidate is in the denominator too.

    Returns
    -------
    FloatTensor (B,)
        Minus infinity where there is no candidate.
    """
    column = torch.arange(logits.shape[1], device=logits.device)
    hidden = ~present.expand_as(logits)
    if not keep_positive:
        hidden = hidden | (column == own.unsqueeze(1))
    positive = logits.gather(1, own.unsqueeze(1)).squeeze(1)
    return logits.masked_fill(hidden, -torch.inf).logsumexp(dim=1) - positive


def found_first(similarity: Tensor, own: Tensor, present: Tensor) -> Tensor:
    """Whether no other candidate is as near as one's own (B,); equal vectors find nothing.

    Parameters
    ----------
    similarity : FloatTensor (B, M)
    own : LongTensor (B,)
    present : BoolTensor (M,)
    """
    column = torch.arange(similarity.shape[1], device=similarity.device)
    rivals = present & (column != own.unsqueeze(1))
    return ~(rivals & (similarity >= similarity.gather(1, own.unsqueeze(1)))).any(dim=1)
