"""Residual vector quantisation with codebooks that follow their vectors by moving averages.

van den Oord et al., NeurIPS 2017, appendix A.1; residual levels as in Zeghidour et al., 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Quantised:
    """Result of quantising n vectors on L levels of C codes.

    Attributes
    ----------
    vectors : Tensor (n, d)
        Sum of the chosen codes; the gradient passes straight through to the input.
    codes : LongTensor (n, L)
    residuals : list of L Tensor (n, d)
        What each level had to describe.
    commitment : Tensor
        Mean squared distance between a level's input and its fixed code.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    residuals: list[torch.Tensor]
    commitment: torch.Tensor


class ResidualCodebooks(nn.Module):
    """L levels of C codes; no gradient reaches a code.

    Parameters
    ----------
    decay : float
        Weight of the past in the moving averages.
    """

    table: torch.Tensor
    size: torch.Tensor
    total: torch.Tensor

    def __init__(self, n_levels: int, n_codes: int, d: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("table", torch.randn(n_levels, n_codes, d) * 0.1)
        self.register_buffer("size", torch.ones(n_levels, n_codes))
        self.register_buffer("total", self.table.clone())

    def forward(self, z: torch.Tensor) -> Quantised:
        """Quantise vectors (n, d), the nearest code of each level in turn."""
        residual, chosen, residuals = z, [], []
        commitment = z.new_zeros(())
        for codes in self.table:
            residuals.append(residual)
            code = torch.cdist(residual.detach(), codes).argmin(dim=1)
            commitment = commitment + F.mse_loss(residual, codes[code])
            residual = residual - codes[code]
            chosen.append(code)
        vectors = z + (z - residual - z).detach()
        return Quantised(
            vectors, torch.stack(chosen, dim=1), residuals, commitment / len(self.table)
        )

    @torch.no_grad()
    def start_from(self, z: torch.Tensor, seed: int) -> None:
        """Take codes from vectors (n, d) of the data by k-means, level after level."""
        from sklearn.cluster import KMeans

        n_codes, residual = self.table.shape[1], z
        for level in range(len(self.table)):
            n_different = len(torch.unique(residual, dim=0))
            k = min(n_codes, n_different)
            found = KMeans(k, n_init=1, random_state=seed).fit(residual.cpu().numpy())
            centres = torch.from_numpy(found.cluster_centers_).to(z)
            # fewer vectors than codes: the rest repeat them and are never the first choice
            self.table[level] = centres[torch.arange(n_codes, device=z.device) % k]
            self.total[level], self.size[level] = self.table[level], 1.0
            nearest = torch.cdist(residual, self.table[level]).argmin(dim=1)
            residual = residual - self.table[level][nearest]

    @torch.no_grad()
    def follow(self, quantised: Quantised, generator: torch.Generator) -> None:
        """Move codes to the mean of their vectors; hardly used ones start anew from the batch."""
        for level, residual in enumerate(quantised.residuals):
            code = quantised.codes[:, level]
            count = torch.bincount(code, minlength=self.table.shape[1]).to(residual.dtype)
            sums = torch.zeros_like(self.total[level]).index_add_(0, code, residual.detach())
            self.size[level].lerp_(count, 1.0 - self.decay)
            self.total[level].lerp_(sums, 1.0 - self.decay)
            dead = self.size[level] < 0.05
            if dead.any():
                pick = torch.randint(len(residual), (int(dead.sum()),), generator=generator)
                self.total[level][dead] = residual[pick].detach()
                self.size[level][dead] = 1.0
            self.table[level] = self.total[level] / self.size[level].unsqueeze(1)


def code_matching(
    first: Quantised, second: Quantised, books: ResidualCodebooks, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-modal code matching (Liu et al., ACL 2022), mean over the levels.

    Each view gives a distribution over the codes, the softmax of minus its squared distances. A
    diagnosis should be recognised by the agreement ``sum_k p_k log q_k`` among those of the batch,
    in both directions.
    """
    loss = first.vectors.new_zeros(())
    here = torch.arange(len(first.vectors), device=loss.device)
    for a, b, codes in zip(first.residuals, second.residuals, books.table, strict=True):
        log_p, log_q = (
            F.log_softmax(-torch.cdist(x, codes).square() / temperature, dim=1) for x in (a, b)
        )
        agreement = log_p.exp() @ log_q.T + log_p @ log_q.exp().T
        loss = loss + F.cross_entropy(agreement, here) + F.cross_entropy(agreement.T, here)
    return loss / (2 * len(books.table))
