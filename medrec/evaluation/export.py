"""A comparison as CSV and as a LaTeX table that stands on its own."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from medrec.evaluation.bootstrap import N_RESAMPLES
from medrec.evaluation.compare import PRIMARY, Comparison

_HEADINGS = {
    "jaccard": "Jaccard",
    "f1": "F1",
    "prauc": "PRAUC",
    "ddi_rate": "DDI",
    "mean_n_drugs": r"\#Med",
}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_PATTERN = re.compile("|".join(re.escape(character) for character in _ESCAPES))


def to_csv(comparison: Comparison) -> str:
    """Every column of the table, after the facts that it rests on, one line per model.

    The facts (cohort, preset, split digests, counts, ground-truth and chance DDI) are repeated in
    each line, so that lines of several files can be put together. Lists are joined by a space.
    """
    facts = {
        name: value
        for name, value in comparison.facts.items()
        if name not in ("thresholds", "caution")
    }
    facts["split_digests"] = [f"{n}:{key}" for n, key in facts["split_digests"].items()]
    table = comparison.table.copy()
    clash = {name: f"table_{name}" for name in facts if name in table}
    table.insert(0, "reference", comparison.reference)
    for name, value in reversed(facts.items()):
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        table.insert(0, clash.get(name, name), text)
    return table.to_csv(index=False)


def escape_latex(text: object) -> str:
    """Text that LaTeX prints as it stands."""
    return _PATTERN.sub(lambda found: _ESCAPES[found.group()], str(text))


def to_latex(comparison: Comparison, bold_best: bool = False) -> str:
    r"""Table for a paper; needs ``\usepackage{booktabs}``.

    Parameters
    ----------
    bold_best : bool
        Print the highest Jaccard, F1 and PRAUC in bold, and say so in the caption. A bold number
        is no claim that its difference to the others is established.
    """
    table = comparison.table
    has_best = "jaccard_distance" in table
    several = bool((table["n_runs"] > 1).any())
    headings = ["Model", *(_HEADINGS[name] for name in PRIMARY), r"$\Delta$ Jaccard", "$p$"]
    headings += [r"SD seeds", "SD splits"] if several else []
    headings += ["To best"] if has_best else []
    best = {name: table[name].max() for name in ("jaccard", "f1", "prauc")} if bold_best else {}
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\caption{" + _caption(comparison, bold_best) + "}",
        r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
    ]
    for title, row in zip(comparison.titles(), table.to_dict("records"), strict=True):
        cells = [escape_latex(title)]
        cells += [_cell(row, name, row[name] == best.get(name)) for name in PRIMARY]
        cells += _tested(row, comparison.reference)
        cells += [_number(row[f"jaccard_sd_{kind}"], 4) for kind in ("seeds", "splits")] * several
        cells += [_interval(row, "jaccard_distance", 3)] if has_best else []
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _number(value: Any, digits: int, sign: str = "") -> str:
    if value is None or pd.isna(value):
        return "--"
    text = f"{value:{sign}.{digits}f}"
    return f"${text}$" if sign or value < 0 else text


def _interval(row: dict[Any, Any], name: str, digits: int, sign: str = "") -> str:
    low, high = (_number(row[f"{name}_{end}"], digits, sign) for end in ("low", "high"))
    return f"{_number(row[name], digits, sign)} [{low}, {high}]"


def _cell(row: dict[Any, Any], name: str, bold: bool) -> str:
    text = _interval(row, name, 1 if name == "mean_n_drugs" else 3)
    if not bold:
        return text
    value, interval = text.split(" ", 1)
    return rf"\textbf{{{value}}} {interval}"


def _tested(row: dict[Any, Any], reference: str) -> list[str]:
    if row["run"] == reference:
        return ["reference", "--"]
    p = row["jaccard_p_holm"]
    return [
        _interval(row, "jaccard_difference", 3, "+"),
        r"$<.001$" if p < 0.001 else _number(p, 3),
    ]


def _caption(comparison: Comparison, bold_best: bool) -> str:
    facts = comparison.facts
    splits = ", ".join(f"{n} ({key[:8]})" for n, key in facts["split_digests"].items())
    tested = ", ".join(map(str, facts["n_test_patients"]))
    visits = ", ".join(map(str, facts["n_test_visits"]))
    thresholds = ", ".join(f"{name}: {text}" for name, text in facts["thresholds"].items())
    sentences = [
        f"Cohort {facts['cohort']}, {facts['preset']} preset, split {splits}.",
        f"{facts['n_patients']} patients, {facts['n_visits']} visits, {facts['n_drugs']} drug "
        f"classes; test part: {tested} patients, {visits} visits.",
        f"DDI rate of the ground truth {facts['ddi_rate_true']:.4f}, of random sets "
        f"{facts['ddi_rate_chance']:.4f}, of independent drugs as frequent as in truth "
        f"{facts['ddi_rate_chance_by_frequency']:.4f}.",
        f"Brackets: 95 % percentile intervals of {N_RESAMPLES:,} bootstrap resamples of patients; "
        f"differences are to {comparison.reference}, on the same resamples; p: Wilcoxon "
        "signed-rank test on the patients' Jaccard, corrected by Holm over the models.",
        f"Thresholds: {thresholds}.",
    ]
    if "jaccard_optimum" in facts:
        sentences.append(f"Best possible Jaccard {facts['jaccard_optimum']:.4f}.")
    if bold_best:
        sentences.append("Bold: highest value; no claim that the difference is established.")
    return escape_latex(" ".join([*sentences, facts["caution"]]))
