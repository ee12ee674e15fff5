"""What an SCF will cost, so that a budget can be kept without a clock.

The choice of species must not depend on how busy the machine is: the same request selects the same
species everywhere. So it rests on a prediction, in seconds of one core of a current processor.
"""

from __future__ import annotations

from collections.abc import Iterable

from quantum.molecule import Species
from quantum.schema import CalculationSpec

# PySCF, PBE/def2-SVP with density fitting, quadrature level 1: 199 functions 15 s, 402 functions
# 55 s (measured); the exponent follows from the pair
_SECONDS_AT_200, _EXPONENT, _START_UP_S = 15.0, 1.9, 3.0
# the screened route at the standard level: 7 s at 199 functions, 28 s at 402, 140 s at 749
_SCREENED_SECONDS_AT_200, _SCREENED_EXPONENT = 5.0, 2.5
_CONFORMER_SECONDS_AT_300 = 0.09
_PROGRAMS_MB = 130.0
_PURE = ("pbe", "blyp", "bp86", "lda")
_FUNCTIONS = {1: 5, 2: 5}


def n_basis_functions(species: Species) -> int:
    """Number of def2-SVP functions: 5 for H and He, 14 in the second row, 18 below, 31 and more."""
    total = 0
    for number in species.atomic_numbers:
        if number <= 2:
            total += _FUNCTIONS[number]
        elif number <= 10:
            total += 14
        elif number <= 18:
            total += 18
        else:
            total += 32
    return total


def predicted_cpu_s(species: Species, spec: CalculationSpec) -> float:
    """Predicted seconds of one core for SCF and ELF map."""
    if spec.route == "screened":
        factor = 0.25 if spec.method.lower() in _PURE else 1.0
        if spec.precision == "double":
            factor *= 2.0
        functions = n_basis_functions(species) / 200.0
        return _START_UP_S + _SCREENED_SECONDS_AT_200 * factor * functions**_SCREENED_EXPONENT
    factor = {0: 0.7, 1: 1.0, 2: 1.6, 3: 2.2}.get(spec.grid_level, 4.0)
    if spec.method.lower() == "hf":
        factor = 0.5
    elif spec.method.lower() not in _PURE:
        factor *= 1.2
    scale = (n_basis_functions(species) / 200.0) ** _EXPONENT
    return _START_UP_S + _SECONDS_AT_200 * factor * scale


def predicted_memory_mb(species: Species, spec: CalculationSpec) -> float:
    """Predicted peak of an SCF in units of 2^20 bytes, with a margin of a half.

    Fitted to measured peaks of 24 to 349 functions in the screened route. PySCF's own route keeps
    the density-fitting integrals (about 3.2 n auxiliary functions) and takes to the disk beyond
    the limit that it is given.
    """
    functions = n_basis_functions(species)
    if spec.route == "screened":
        needed = 0.88 * functions + 0.0095 * functions**2
        needed *= 2.0 if spec.precision == "double" else 1.0
    else:
        needed = 150.0 + 8 * 3.2 * functions**3 / 2 / 2**20
    return 1.5 * (_PROGRAMS_MB + needed)


def predicted_conformer_s(species: Species) -> float:
    """Predicted seconds of one core for the conformers (12 drugs of 181 to 749 functions)."""
    return 0.02 + _CONFORMER_SECONDS_AT_300 * (n_basis_functions(species) / 300.0) ** 2.7


def select_within_budget(
    species: Iterable[Species], spec: CalculationSpec, budget_cpu_s: float | None, max_atoms: int
) -> list[Species]:
    """Cheapest species first until the predicted seconds are spent; ties in the order of SMILES.

    Returns
    -------
    list of Species
        Largest first, which is the order to submit them in.
    """
    small = [item for item in set(species) if item.n_atoms <= max_atoms]
    ordered = sorted(small, key=lambda item: (predicted_cpu_s(item, spec), item.smiles))
    chosen, spent = [], 0.0
    for item in ordered:
        spent += predicted_cpu_s(item, spec)
        if budget_cpu_s is not None and spent > budget_cpu_s:
            break
        chosen.append(item)
    return chosen[::-1]
