"""The molecules behind drug classes: structures, graphs, interactions, stored features."""
