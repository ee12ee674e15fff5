"""Conversion constants, CODATA 2018. Nothing else in the project defines one."""

from __future__ import annotations

BOHR_IN_ANGSTROM = 0.529177210903
ANGSTROM_IN_BOHR = 1.0 / BOHR_IN_ANGSTROM
HARTREE_IN_EV = 27.211386245988
