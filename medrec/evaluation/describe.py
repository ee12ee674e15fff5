"""Tables about one run's rows: calibration, set sizes, DDI by severity, old definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medrec.evaluation.bootstrap import bootstrap_intervals, legacy_bootstrap
from medrec.evaluation.metrics import N_BINS, SEVERITIES, has_severity, summarise

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """Data of the reliability plot: predicted and observed frequency in ten bins of the score.

    Returns
    -------
    pandas.DataFrame
        ``from``, ``to``, ``n`` (visits times drugs), ``predicted``, ``observed``; an empty bin has
        NaN. Drugs outside the vocabulary have no score and are not counted.
    """
    n, scores, truths = (
        np.array([rows[f"cal_{part}_{b}"].sum() for b in range(N_BINS)], float) for part in "npy"
    )
    filled = np.where(n > 0, n, np.nan)
    edges = np.arange(N_BINS + 1) / N_BINS
    return pd.DataFrame(
        {
            "from": edges[:-1],
            "to": edges[1:],
            "n": n.astype(int),
            "predicted": scores / filled,
            "observed": truths / filled,
        }
    )


def set_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Distribution of the number of drugs per visit, recommended and true.

    Returns
    -------
    pandas.DataFrame
        Two rows; ``sets``, ``mean``, ``sd`` (over visits, ddof 1), ``min``, quantiles ``q05``,
        ``q25``, ``q50``, ``q75``, ``q95``, ``max``, ``empty`` (share of empty sets).
    """
    table = []
    for title, column in (("recommended", "n_selected"), ("true", "n_true")):
        sizes = rows[column].to_numpy(float)
        row: dict[str, object] = {"sets": title, "mean": sizes.mean()}
        row["sd"] = sizes.std(ddof=1) if len(sizes) > 1 else float("nan")
        row["min"] = sizes.min()
        row |= {f"q{round(100 * q):02d}": np.quantile(sizes, q) for q in QUANTILES}
        row |= {"max": sizes.max(), "empty": (sizes == 0).mean()}
        table.append(row)
    return pd.DataFrame(table)


def ddi_by_severity(rows: pd.DataFrame, names: dict[int, str]) -> pd.DataFrame:
    """Interacting pairs per severity, of all pairs in the recommended and in the true sets.

    Parameters
    ----------
    names : dict of int to str
        Name of each grade.

    Returns
    -------
    pandas.DataFrame
        ``severity``, ``rate``, ``low``, ``high`` (95 %), ``rate_true``; empty if the interactions
        have no grades. Grades below the cohort's least severity count here, not in ``ddi_rate``.
    """
    columns = ["severity", "rate", "low", "high", "rate_true"]
    if not has_severity(rows):
        return pd.DataFrame(columns=columns)
    summary, intervals = summarise(rows), bootstrap_intervals(rows)
    table = []
    for grade in SEVERITIES:
        key = f"ddi_rate_severity_{grade}"
        title = f"{grade} {names[grade]}"
        table.append((title, summary[key], *intervals[key], summary[f"{key}_true"]))
    return pd.DataFrame(table, columns=columns)


def legacy_definitions(rows: pd.DataFrame) -> pd.DataFrame:
    """The numbers that published scripts would print for the same predictions, by name.

    Returns
    -------
    pandas.DataFrame
        ``definition`` (what is averaged, and who does it), ``jaccard``, ``f1``, ``prauc``, and the
        standard deviations of the ten draws where there are draws. None is a confidence interval.
    """
    summary = summarise(rows)
    kinds = [
        ("safedrug: ten draws of 80 % of patients with replacement", True),
        ("cognet: ten draws of 80 % of patients without replacement", False),
    ]
    names = ("jaccard", "f1", "prauc")
    table: list[dict[str, object]] = []
    for title, replace in kinds:
        drawn = legacy_bootstrap(rows, replace=replace)
        row: dict[str, object] = {"definition": title}
        for name in names:
            row[name], row[f"{name}_sd"] = drawn[name]
        table.append(row)
    for title, suffix in (
        ("pyhealth, LR, ECC: plain mean over visits", "_visit_mean"),
        ("retain, micron: visits from the second on", "_later"),
    ):
        table.append({"definition": title, **{name: summary[name + suffix] for name in names}})
    return pd.DataFrame(table)
