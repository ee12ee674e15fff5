"""Molecule libraries: public data sets as arrays on disk that are read through memory maps."""
