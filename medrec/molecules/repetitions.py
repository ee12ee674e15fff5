"""What repeats in a set of molecular graphs, so that it is computed once.

A few hundred molecules hold some eighty kinds of atoms and a dozen kinds of bonds; they have far
fewer distinct direct surroundings (an atom's kind, those of its bonds and neighbours) than atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class RowSums:
    """Sums of rows, as the multiplication by a sparse matrix of counts, with its transpose.

    Attributes
    ----------
    index : LongTensor (E,), start : LongTensor (n,)
        Rows that are added, one output row after the other, and where each output row begins.
    index_back, start_back : LongTensor
        The same for the transpose.
    """

    index: torch.Tensor
    start: torch.Tensor
    index_back: torch.Tensor
    start_back: torch.Tensor

    @classmethod
    def of(cls, output: torch.Tensor, row: torch.Tensor, n_outputs: int, n_rows: int) -> RowSums:
        """Add input row ``row[i]`` to output row ``output[i]``, for all i."""
        there, back = (torch.argsort(column, stable=True) for column in (output, row))
        return cls(row[there], _starts(output, n_outputs), output[back], _starts(row, n_rows))

    def to(self, device: torch.device | str) -> RowSums:
        """Copy to a device."""
        return RowSums(*(getattr(self, f.name).to(device) for f in fields(self)))


def _starts(groups: torch.Tensor, n: int) -> torch.Tensor:
    size = torch.bincount(groups, minlength=n)
    return size.cumsum(0) - size


@dataclass(frozen=True)
class Neighbourhoods:
    """What one message-passing step reads and where it writes.

    Attributes
    ----------
    messages : RowSums
        From the input rows and, below them, the bond kinds, to distinct messages: each is the sum
        of one of either.
    arriving : RowSums
        From messages to the n output rows.
    own : LongTensor (n,) or None
        Row of the input that each output row continues; None where both are the same.
    share : FloatTensor (n,)
        Share of each output row in all atoms.
    spread : LongTensor (N,) or None
        Output row of each atom; None where rows are atoms.
    n_atoms : int
        Number N of atoms that the output rows stand for.
    """

    messages: RowSums
    arriving: RowSums
    own: torch.Tensor | None
    share: torch.Tensor
    spread: torch.Tensor | None
    n_atoms: int

    def to(self, device: torch.device | str) -> Neighbourhoods:
        """Copy to a device."""
        return Neighbourhoods(
            self.messages.to(device),
            self.arriving.to(device),
            None if self.own is None else self.own.to(device),
            self.share.to(device),
            None if self.spread is None else self.spread.to(device),
            self.n_atoms,
        )


@dataclass(frozen=True)
class Repetitions:
    """Equal things in a set of graphs with N atoms.

    Attributes
    ----------
    atom_kinds : LongTensor (A, 9), bond_kinds : LongTensor (B, 3)
        Distinct rows of categories.
    first : Neighbourhoods
        From atom kinds to distinct surroundings.
    later : Neighbourhoods
        From atoms to atoms.
    atom_share : FloatTensor (N,)
        One over the number of atoms in the atom's graph.
    """

    atom_kinds: torch.Tensor
    bond_kinds: torch.Tensor
    first: Neighbourhoods
    later: Neighbourhoods
    atom_share: torch.Tensor

    def to(self, device: torch.device | str) -> Repetitions:
        """Copy to a device."""
        return Repetitions(
            self.atom_kinds.to(device),
            self.bond_kinds.to(device),
            self.first.to(device),
            self.later.to(device),
            self.atom_share.to(device),
        )


def find_repetitions(
    x: torch.Tensor,
    edge_index: torch.Tensor,
    edge_attr: torch.Tensor,
    graph: torch.Tensor,
    n_graphs: int,
) -> Repetitions:
    """Look for equal atoms, bonds and surroundings; arguments as in `MoleculeGraphs`."""
    n = len(x)
    atom_kinds, kind = torch.unique(x, dim=0, return_inverse=True)
    bond_kinds, bond = torch.unique(edge_attr, dim=0, return_inverse=True)
    source, target = edge_index
    step = max(len(bond_kinds), 1)
    messages, message = torch.unique(kind[source] * step + bond, return_inverse=True)
    # a surrounding is an atom's kind, and how often each kind of message reaches it
    counts = torch.zeros(n, len(messages) + 1, dtype=torch.int32)
    counts.index_put_((target, message), torch.ones_like(message, dtype=torch.int32), True)
    counts[:, -1] = kind
    distinct, surrounding = torch.unique(counts, dim=0, return_inverse=True)
    size = torch.bincount(surrounding, minlength=len(distinct))
    row, column = distinct[:, :-1].nonzero(as_tuple=True)
    times = distinct[row, column].long()
    first = Neighbourhoods(
        _messages(messages, len(atom_kinds), step),
        RowSums.of(
            row.repeat_interleave(times),
            column.repeat_interleave(times),
            len(distinct),
            len(messages),
        ),
        distinct[:, -1].long(),
        size / max(n, 1),
        surrounding,
        n,
    )
    messages, message = torch.unique(source * step + bond, return_inverse=True)
    later = Neighbourhoods(
        _messages(messages, n, step),
        RowSums.of(target, message, n, len(messages)),
        None,
        torch.full((n,), 1.0 / max(n, 1)),
        None,
        n,
    )
    n_atoms = torch.bincount(graph, minlength=n_graphs)
    return Repetitions(atom_kinds, bond_kinds, first, later, 1.0 / n_atoms[graph])


def _messages(messages: torch.Tensor, n_rows: int, step: int) -> RowSums:
    """Split messages, numbered as source times step plus bond, into their two rows."""
    number = torch.arange(len(messages))
    rows = torch.cat([messages // step, n_rows + messages % step])
    return RowSums.of(number.repeat(2), rows, len(messages), n_rows + step)
