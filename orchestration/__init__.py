"""Machines: the command line, Ray tasks, Ray Train, Ray Tune with Optuna.

The only package that imports Ray or Optuna. Everything here wraps a function of `medrec` or
`quantum` that also runs in a plain loop. Start reading at `orchestration.cli`, then
`orchestration.tasks` (the same functions on many machines).
"""
