"""SE-RQVAE: residual quantisation of two aligned views of medical concepts (SCQMed, III-B).

Per kind of concept one model holds a tower for each view: encoder, L levels of codes, decoder::

    r_0 = z = encoder(c);  q_l = argmin_k |r_{l-1} - e_lk|^2;  r_l = r_{l-1} - e_{l,q_l}   (Eq. 1)
    q = sum_l e_{l,q_l};   c' = decoder(z + sg(q - z))
    L_recon  = mean over concepts of |c - c'|^2                                            (Eq. 2)
    L_commit = mean of sum_l |sg[r_{l-1}] - e_{q_l}|^2 + alpha |r_{l-1} - sg[e_{q_l}]|^2
    L_align  = InfoNCE(q_sem -> q_str) + InfoNCE(q_str -> q_sem), cosine / tau             (Eq. 3)
    L        = sum over views (L_recon + L_commit) + beta L_align                          (Eq. 4)

This is the paper. The released code differs: it passes beta as alpha, weights L_recon with 3,
averages where the paper sums, contrasts in one direction, has six-layer ReLU encoders, and balances
the last level, which is an option here (``balance_last_level``).

What the paper leaves open: residuals see the codes of earlier levels as constants, so that a code
moves to the residuals it describes and to nothing else; views are centred and scaled to a mean
squared length of `VIEW_SCALE`, so that the weights of the loss mean the same for every maker of
views; codes that describe no concept start anew from the residual of a random one; training ends
when reconstruction plus collisions stop falling.

Letters: N concepts, V views, L levels, K codes per level, d size of a code.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from medrec.concepts.collisions import collision_rate
from medrec.concepts.quantiser import Quantised, ResidualQuantiser
from medrec.concepts.table import VIEWS, ConceptCodes, ConceptViews
from medrec.config import QuantiserConfig

HIDDEN = (512, 256)
VIEW_SCALE = 64.0
CHECK_EVERY = 5

OnEpoch = Callable[[dict[str, float]], None]


def info_nce(query: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cosine InfoNCE of n pairs of rows, the other rows of the batch being negatives (Eq. 3)."""
    scores = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(query), device=query.device))


class Tower(nn.Module):
    """Encoder, quantiser and decoder of one view; three-layer MLPs with GELU."""

    def __init__(self, n_features: int, n_codes: int, config: QuantiserConfig) -> None:
        super().__init__()
        sizes = (n_features, *HIDDEN, config.code_dim)
        self.encoder = _mlp(sizes)
        self.decoder = _mlp(sizes[::-1])
        self.quantiser = ResidualQuantiser(
            config.levels, n_codes, config.code_dim, config.commitment, config.balance_last_level
        )

    def forward(self, rows: torch.Tensor) -> tuple[Quantised, torch.Tensor]:
        """Quantise a view (n, n_features); also L_recon."""
        found = self.quantiser(self.encoder(rows))
        return found, (rows - self.decoder(found.vectors)).square().sum(dim=1).mean()


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class SERQVAE(nn.Module):
    """Towers of the views of one kind of concept.

    Parameters
    ----------
    sizes : dict of str to int
        Number of features of each view.
    n_codes : int
        Codes per level.
    """

    def __init__(self, sizes: dict[str, int], n_codes: int, config: QuantiserConfig) -> None:
        super().__init__()
        self.config = config
        self.towers = {view: Tower(size, n_codes, config) for view, size in sizes.items()}
        self.registered = nn.ModuleDict(self.towers)

    def forward(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss and its parts for a batch of concepts; with one view there is no alignment."""
        zero = next(iter(rows.values())).new_zeros(())
        recon, commit, align = zero, zero, zero
        vectors: list[torch.Tensor] = []
        for view, tower in self.towers.items():
            found, error = tower(rows[view])
            recon, commit = recon + error, commit + found.commitment
            vectors.append(found.vectors)
        if len(vectors) > 1:
            first, second = vectors
            tau = self.config.align_temperature
            align = info_nce(first, second, tau) + info_nce(second, first, tau)
        loss = recon + commit + self.config.align_weight * align
        return {"loss": loss, "recon": recon, "commit": commit, "align": align}

    @torch.no_grad()
    def codes(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Codes of all concepts (N, V, L)."""
        found = [t.quantiser(t.encoder(rows[v])).codes for v, t in self.towers.items()]
        return torch.stack(found, dim=1)


@dataclass
class TrainedCodes:
    """Codes of one kind of concept, and how they were found.

    Attributes
    ----------
    history : list of dict
        One row per check: epoch, loss and its parts, ``unexplained`` (share of the views' variance
        that the codes do not restore), ``collisions`` (joint) and ``revived``.
    facts : dict
        Numbers for the manifest.
    """

    codes: ConceptCodes
    history: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def train_codes(
    views: ConceptViews,
    n_codes: int,
    config: QuantiserConfig,
    *,
    structure: bool = True,
    seed: int = 0,
    on_check: OnEpoch | None = None,
) -> TrainedCodes:
    """Train the SE-RQVAE of one kind of concept.

    Parameters
    ----------
    n_codes : int
        Codes per level; not more than concepts are kept.
    structure : bool
        False quantises the semantic view alone (the paper's ablation w/o SE).
    on_check : callable, optional
        Called with each row of the history.
    """
    wanted = VIEWS if structure else VIEWS[:1]
    n = len(views.codes)
    n_codes = max(min(n_codes, n), 1)
    if n == 0:
        books = np.zeros((len(wanted), config.levels, n_codes, config.code_dim), np.float32)
        return TrainedCodes(
            ConceptCodes(np.zeros((0, len(wanted), config.levels), np.int16), books, wanted)
        )
    rows = {view: torch.from_numpy(standardised(getattr(views, view))) for view in wanted}
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SERQVAE({view: x.shape[1] for view, x in rows.items()}, n_codes, config)
        history, best = _Training(model, rows, config, seed, on_check).run()
    index = model.codes(rows).numpy().astype(np.int16)
    books = torch.stack([t.quantiser.books.detach() for t in model.towers.values()]).numpy()
    facts = {
        "concepts": n,
        "codes_per_level": n_codes,
        "epochs": int(history[-1]["epoch"]),
        "best_epoch": int(best["epoch"]),
        "unexplained": best["unexplained"],
        "loss": best["loss"],
        "codes_used": sum(len(np.unique(column)) for column in index.reshape(n, -1).T),
        "codes_in_all": books.shape[0] * books.shape[1] * books.shape[2],
        "seconds": round(time.perf_counter() - start, 2),
    }
    return TrainedCodes(ConceptCodes(index, books, wanted), history, facts)


def standardised(view: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centre the rows (N, n) and scale them to a mean squared length of `VIEW_SCALE`."""
    centred = view.astype(np.float64) - view.mean(axis=0, dtype=np.float64)
    spread = float(np.square(centred).sum(axis=1).mean())
    if spread > 0.0:
        centred *= np.sqrt(VIEW_SCALE / spread)
    return centred.astype(np.float32)


class _Training:
    """The loop over epochs, with k-means start, revival, early stop and the best weights."""

    def __init__(
        self,
        model: SERQVAE,
        rows: dict[str, torch.Tensor],
        config: QuantiserConfig,
        seed: int,
        on_check: OnEpoch | None,
    ) -> None:
        self.model, self.rows, self.config, self.on_check = model, rows, config, on_check
        self.n = len(next(iter(rows.values())))
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed

    def run(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """Train; returns the history and the row of the best check, whose weights are loaded."""
        config = self.config
        for view, tower in self.model.towers.items():
            with torch.no_grad():
                tower.quantiser.start_from(tower.encoder(self.rows[view]), self.seed)
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        history = [self._check(0, 0)]
        best, state = history[0], copy.deepcopy(self.model.state_dict())
        for epoch in range(1, config.epochs + 1):
            self._epoch(optimiser)
            if epoch % CHECK_EVERY and epoch != config.epochs:
                continue
            row = self._check(epoch, self._revive())
            history.append(row)
            if row["score"] < best["score"] - config.least_gain:
                best, state = row, copy.deepcopy(self.model.state_dict())
            if epoch - best["epoch"] >= config.patience:
                break
        self.model.load_state_dict(state)
        return history, best

    def _epoch(self, optimiser: torch.optim.Optimizer) -> None:
        order = torch.randperm(self.n, generator=self.generator)
        for chosen in order.split(self.config.batch_size):
            whole = len(chosen) == self.n
            batch = self.rows if whole else {v: x[chosen] for v, x in self.rows.items()}
            loss = self.model(batch)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    @torch.no_grad()
    def _revive(self) -> int:
        if not self.config.revive_dead_codes:
            return 0
        return sum(
            tower.quantiser.revive(tower.encoder(self.rows[view]), self.generator)
            for view, tower in self.model.towers.items()
        )

    @torch.no_grad()
    def _check(self, epoch: int, revived: int) -> dict[str, float]:
        parts = {name: float(value) for name, value in self.model(self.rows).items()}
        collisions = collision_rate(self.model.codes(self.rows).flatten(1).numpy())
        spread = sum(float(x.square().sum(dim=1).mean()) for x in self.rows.values())
        unexplained = parts["recon"] / max(spread, 1e-12)
        row = {
            "epoch": float(epoch),
            **parts,
            "unexplained": unexplained,
            "collisions": collisions,
            "score": unexplained + collisions,
            "revived": float(revived),
        }
        if self.on_check is not None:
            self.on_check(row)
        return row
