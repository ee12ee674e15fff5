"""Molecules to features: SMILES, conformer, SCF, electron localisation function.

`quantum` knows molecules and nothing else: no patients, no PyTorch, no Ray. A request is a
frozen typed object, its digest is its name, and finished work is found by that name in the
feature store. Start reading at `quantum.schema` (the nouns), then `quantum.pipeline` (the
stages in order), then `quantum.elf` (the one place where ELF is computed).

Shape letters used throughout: A atoms, G grid points, K features, N basis functions.
"""
