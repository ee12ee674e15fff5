"""Molecules to features: SMILES, conformer, SCF, electron localisation function.

`quantum` knows molecules and nothing else: no patients, no PyTorch, no Ray. A request is a
frozen typed object, its digest is its name, and finished work is found by that name in the
feature store. Start reading at `quantum.schema` (the nouns), then `quantum.pipeline` (the
stages in order), then `quantum.elf` (the one place where ELF is computed).

``quantum.calculate("CCO")`` is the shortest way in; names of the package load on first use.

Shape letters used throughout: A atoms, G grid points, K features, N basis functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantum.api import Calculation, calculate
    from quantum.base import MedrecError
    from quantum.molecule import Species, species_from_smiles
    from quantum.schema import LEVELS, PipelineSpec
    from quantum.store import MemoryStore, Record, open_store

__all__ = [
    "LEVELS",
    "Calculation",
    "MedrecError",
    "MemoryStore",
    "PipelineSpec",
    "Record",
    "Species",
    "calculate",
    "open_store",
    "species_from_smiles",
]

if not TYPE_CHECKING:
    _HOMES = {
        "Calculation": "api",
        "calculate": "api",
        "MedrecError": "base",
        "Species": "molecule",
        "species_from_smiles": "molecule",
        "LEVELS": "schema",
        "PipelineSpec": "schema",
        "MemoryStore": "store",
        "Record": "store",
        "open_store": "store",
    }

    def __getattr__(name):
        """Load a public name on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        """Public names and what is loaded."""
        return sorted({*globals(), *__all__})
