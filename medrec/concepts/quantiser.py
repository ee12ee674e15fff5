"""Residual quantisation: vectors as sums of codes, level after level (SCQMed, Eq. 1 and 2).

Letters: n vectors, L levels, K codes per level, d size of a code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

SINKHORN_STEPS, SINKHORN_EPSILON = 50, 0.003


@dataclass
class Quantised:
    """Result of quantising n vectors.

    Attributes
    ----------
    vectors : Tensor (n, d)
        Sum of the chosen codes; the gradient passes straight through to the input.
    codes : LongTensor (n, L)
    residual : Tensor (n, d)
        What the last level left over: input = sum of the codes + residual.
    commitment : Tensor
        L_commit, the mean over the n vectors.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    residual: torch.Tensor
    commitment: torch.Tensor


class ResidualQuantiser(nn.Module):
    """L levels of K codes that learn by gradient.

    Parameters
    ----------
    alpha : float
        Weight of the encoder's side of the commitment loss.
    balance_last : bool
        Sinkhorn assignment at the last level: about equally many vectors for each code.
    """

    def __init__(
        self, levels: int, n_codes: int, d: int, alpha: float = 1.0, balance_last: bool = False
    ) -> None:
        super().__init__()
        self.alpha, self.balance_last = alpha, balance_last
        self.books = nn.Parameter(torch.randn(levels, n_codes, d) * 0.1)

    def assign(self, residual: torch.Tensor, level: int) -> torch.Tensor:
        """Code of each residual (n, d) at a level; (n,)."""
        codes = self.books[level].detach()
        distances = codes.square().sum(dim=1) - 2.0 * residual.detach() @ codes.T
        if self.balance_last and level == len(self.books) - 1 and len(residual) > 1:
            return balanced_assignment(distances + residual.detach().square().sum(1, keepdim=True))
        return distances.argmin(dim=1)

    def forward(self, z: torch.Tensor) -> Quantised:
        """Quantise vectors (n, d)."""
        residual, chosen = z, []
        total, commitment = torch.zeros_like(z), z.new_zeros(())
        for level, book in enumerate(self.books):
            code = self.assign(residual, level)
            found = F.embedding(code, book)
            of_codes = (residual.detach() - found).square().sum(dim=1).mean()
            of_encoder = (residual - found.detach()).square().sum(dim=1).mean()
            commitment = commitment + of_codes + self.alpha * of_encoder
            residual, total = residual - found.detach(), total + found.detach()
            chosen.append(code)
        return Quantised(z + (total - z).detach(), torch.stack(chosen, dim=1), residual, commitment)

    @torch.no_grad()
    def start_from(self, z: torch.Tensor, seed: int) -> None:
        """Take codes from vectors (n, d) by k-means, level after level on what is left over.

        With fewer different residuals than codes, the further codes repeat the first ones; a
        repeated code is never chosen.
        """
        residual, n_codes = z, self.books.shape[1]
        for level in range(len(self.books)):
            centres = _k_means(residual.cpu().numpy(), n_codes, seed + level)
            place = torch.arange(n_codes) % len(centres)
            self.books[level] = torch.from_numpy(centres).to(z)[place]
            residual = residual - self.books[level][self.assign(residual, level)]

    @torch.no_grad()
    def revive(self, z: torch.Tensor, generator: torch.Generator) -> int:
        """Start codes that describe no vector anew from residuals of random vectors.

        Parameters
        ----------
        z : Tensor (n, d)
            All concepts, so that a code unused here is unused.

        Returns
        -------
        int
            Number of codes that were replaced, over all levels.
        """
        residual, revived = z, 0
        for level, book in enumerate(self.books):
            used = torch.bincount(self.assign(residual, level), minlength=len(book)) > 0
            dead = (~used).nonzero().squeeze(1)[: len(z)]
            # different vectors each, or two revived codes would be one
            pick = torch.randperm(len(z), generator=generator)[: len(dead)].to(z.device)
            book[dead] = residual[pick]
            revived += len(dead)
            residual = residual - book[self.assign(residual, level)]
        return revived


def balanced_assignment(
    distances: torch.Tensor, epsilon: float = SINKHORN_EPSILON, steps: int = SINKHORN_STEPS
) -> torch.Tensor:
    """Assign n vectors to K codes so that each code gets about n/K of them (Sinkhorn-Knopp).

    Parameters
    ----------
    distances : Tensor (n, K)
        Squared distances; they are scaled to [-1, 1] first, as in the released code.
    epsilon : float
        Entropy weight; smaller follows the distances more closely.

    Returns
    -------
    LongTensor (n,)
    """
    low, high = distances.min(), distances.max()
    half = ((high - low) / 2.0).clamp(min=torch.finfo(distances.dtype).tiny)
    # in logarithms: exp(1 / 0.003) has no place in float32
    log_plan = -((distances - (high + low) / 2.0) / half).double() / epsilon
    for _ in range(steps):
        log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True)  # equal codes
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)  # equal vectors
    return log_plan.argmax(dim=1)


def _k_means(rows: npt.NDArray[np.float32], n_clusters: int, seed: int) -> npt.NDArray[np.float32]:
    """Centres of at most ``n_clusters`` clusters, fewer if there are fewer different rows."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    different = np.unique(rows, axis=0)
    if len(different) <= n_clusters:
        return different
    with warnings.catch_warnings():  # rows that differ by rounding only
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_clusters, n_init=1, random_state=seed).fit(rows)
    return np.asarray(found.cluster_centers_, dtype=np.float32)
