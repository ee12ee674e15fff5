"""Patients and molecules to recommendations: records, visits, recommenders, metrics.

`medrec` may read `quantum`'s identities, schemas and store, and never a quantum-chemistry
program; it knows nothing of Ray. Start reading at `medrec.data.schema` (the nouns and the rule
of what a model may see), then `medrec.training` (the learning half, top to bottom), then one
model in `medrec.models`.

Shape letters used throughout: B batch (patients), V visits, D drugs, A atoms, K features.
"""
