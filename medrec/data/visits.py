"""Events to visits, filter by filter, with a count after each.

``strict`` and ``legacy`` walk the same path; the configuration decides what each step does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import polars as pl

from medrec.config import CohortConfig
from medrec.data.codes import CodeMaps, icd_label, map_prescriptions
from medrec.data.schema import Events
from quantum.base import DataError

ADMISSION = ["subject", "admission"]


def distinct_visits(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``subject`` and ``admission`` without repetition; fast where equal rows adjoin."""
    changes = [pl.col(name).ne_missing(pl.col(name).shift()) for name in ADMISSION]
    first = pl.int_range(pl.len()) == 0
    return rows.select(ADMISSION).filter(pl.any_horizontal(*changes, first)).unique()


@dataclass
class Funnel:
    """Rows, visits and patients after every filter; refuses to go on with nothing."""

    where: str
    steps: list[dict[str, int | str]] = field(default_factory=list)

    def add(self, step: str, rows: int, admissions: pl.DataFrame) -> None:
        """Record a filter.

        Parameters
        ----------
        rows : int
            Prescription rows that still count.
        admissions : polars.DataFrame
            ``subject`` and ``admission`` of what is left.

        Raises
        ------
        DataError
            If no admission is left; the message names the filter and what was there before it.
        """
        before = self.steps[-1] if self.steps else None
        if before and rows == before["rows"]:  # a filter only takes rows away: nothing changed
            self.steps.append({**before, "step": step})
            return
        visits = distinct_visits(admissions)
        counts = {"rows": rows, "visits": len(visits), "patients": visits["subject"].n_unique()}
        if not visits.height:
            had = (
                f"before it there were {before['rows']} rows, {before['visits']} visits, "
                f"{before['patients']} patients"
                if before
                else "the prescription table is empty"
            )
            raise DataError(
                f"{self.where}: nothing is left after the filter '{step}'; {had}; expected at "
                "least one patient"
            )
        self.steps.append({"step": step, **counts})

    def frame(self) -> pd.DataFrame:
        """One line per filter: ``step``, ``rows``, ``visits``, ``patients``."""
        return pd.DataFrame(self.steps, columns=["step", "rows", "visits", "patients"])


@dataclass(frozen=True)
class VisitTables:
    """What the filters leave.

    Parameters
    ----------
    visits : polars.DataFrame
        ``patient``, ``visit``, and the sorted lists ``diagnoses``, ``procedures``, ``drugs``.
    codes : pandas.DataFrame
        ``system``, ``code``, ``title`` of every diagnosis and procedure that occurs.
    prescribed : list of str
        ATC level-5 codes that occur in the prescriptions of the visits left.
    oracle : polars.DataFrame or None
        Planted probabilities of the visits, row by row, one column per ATC level-5 code; only of
        synthetic records in order of time.
    """

    visits: pl.DataFrame
    codes: pd.DataFrame
    prescribed: list[str]
    funnel: pd.DataFrame
    coverage: pd.DataFrame
    oracle: pl.DataFrame | None = None


def forward_fill_ndc(prescriptions: pl.DataFrame) -> pl.DataFrame:
    """Give a row without NDC the code of the row above it, whoever's row that is.

    The published scripts do this, after dropping the placeholder code 0. It moves drugs between
    patients; it is here to show by how much numbers change.
    """
    kept = prescriptions.filter(
        pl.col("ndc").is_null() | (pl.col("ndc").str.strip_chars("0 ") != "")
    )
    return kept.with_columns(pl.col("ndc").forward_fill()).drop_nulls("ndc")


def build_visits(
    events: Events, config: CohortConfig, maps: CodeMaps, with_molecule: set[str]
) -> VisitTables:
    """Apply every filter of a configuration.

    Parameters
    ----------
    with_molecule : set of str
        Drug classes that have a structure, for ``require_molecule``.

    Raises
    ------
    DataError
        If a filter leaves nothing, or no prescription row has an ATC code by the routes asked for.
    """
    funnel = Funnel(events.where)
    prescriptions = _select_prescriptions(events.prescriptions, config, funnel)
    mapped = map_prescriptions(
        prescriptions, maps, config.drug_routes, config.ndc_policy, config.atc_level
    )
    if mapped.classes.is_empty():
        raise DataError(
            f"{events.where}: none of the {len(prescriptions)} prescription rows has an ATC level "
            f"{config.atc_level} code by the routes {', '.join(config.drug_routes)}; expected "
            "known codes in the columns gsn or ndc, or known names in the column drug"
        )
    rows = mapped.rows.join(mapped.classes, on="key", how="semi").sort(ADMISSION)
    funnel.add("drug has an ATC code", int(rows["n"].sum()), rows)
    rows, classes = _select_classes(rows, mapped.classes, config, with_molecule, funnel)
    diagnoses = _ranked(events.diagnoses, config.top_diagnoses, config)
    procedures = _ranked(events.procedures, config.top_procedures, config)
    rows, times = _join(rows, diagnoses, procedures, events, config, funnel)
    ordered = _order(rows, times)
    visits = _group(ordered, rows, classes, diagnoses, procedures)
    prescribed = classes.join(rows, on="key", how="semi")["atc5"].unique().sort().to_list()
    codes = pd.concat(
        [
            _titles(rows, diagnoses, "diagnosis", maps, config),
            _titles(rows, procedures, "procedure", maps, config),
        ],
        ignore_index=True,
    )
    oracle = _oracle(events, ordered, times)
    return VisitTables(visits, codes, prescribed, funnel.frame(), mapped.coverage, oracle)


def _select_prescriptions(
    prescriptions: pl.DataFrame, config: CohortConfig, funnel: Funnel
) -> pl.DataFrame:
    funnel.add("prescription rows read", len(prescriptions), prescriptions)
    prescriptions = prescriptions.filter(pl.col("drug_type").is_in(list(config.drug_types)))
    funnel.add(f"drug type {'/'.join(config.drug_types)}", len(prescriptions), prescriptions)
    if config.forward_fill_ndc:
        prescriptions = forward_fill_ndc(prescriptions)
        funnel.add("NDC not 0, forward-filled", len(prescriptions), prescriptions)
    if config.min_visits_rule == "raw_prescriptions":
        prescriptions = _with_enough_visits(prescriptions, config.min_visits)
        step = f"at least {config.min_visits} admissions with prescriptions"
        funnel.add(step, len(prescriptions), prescriptions)
    return prescriptions


def _with_enough_visits(rows: pl.DataFrame, least: int) -> pl.DataFrame:
    """Rows of the patients that have so many admissions among them."""
    visits = distinct_visits(rows).group_by("subject").len("n")
    return rows.join(visits.filter(pl.col("n") >= least), on="subject", how="semi")


def _select_classes(
    rows: pl.DataFrame,
    classes: pl.DataFrame,
    config: CohortConfig,
    with_molecule: set[str],
    funnel: Funnel,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Filter drug classes; a prescription row stays while it has one class left."""
    if config.top_drugs is not None and config.vocabulary_fit == "all":
        pairs = rows.join(classes, on="key").select(*ADMISSION, "atc").unique()
        top = pairs.group_by("atc").len("n").sort("n", "atc", descending=[True, False])
        classes = classes.filter(pl.col("atc").is_in(top["atc"].head(config.top_drugs).to_list()))
        rows = rows.join(classes, on="key", how="semi")
        funnel.add(f"{config.top_drugs} most frequent drug classes", int(rows["n"].sum()), rows)
    if config.require_molecule:
        classes = classes.filter(pl.col("atc").is_in(sorted(with_molecule)))
        rows = rows.join(classes, on="key", how="semi")
        funnel.add("drug class has a molecule", int(rows["n"].sum()), rows)
    return rows, classes


def _ranked(table: pl.DataFrame, top: int | None, config: CohortConfig) -> pl.DataFrame:
    """Labelled codes of an ICD table, the most frequent ones only where all patients may count.

    With ``vocabulary_fit: train`` the same limit is applied to the training patients when a
    vocabulary is built, and nothing is dropped here.
    """
    icd = pl.concat_str(pl.lit("icd"), pl.col("version").cast(pl.String))
    system = pl.when(pl.col("version") == 0).then(pl.lit("path")).otherwise(icd)
    labels = pl.concat_str(system, pl.lit(":"), pl.col("code"))
    label = labels if config.icd_version_prefix else pl.col("code")
    table = table.drop_nulls("code").with_columns(label.alias("label")).unique()
    if top is None or config.vocabulary_fit != "all":
        return table
    order = table.group_by("label").len("n").sort("n", "label", descending=[True, False])
    return table.filter(pl.col("label").is_in(order["label"].head(top).to_list()))


def _join(
    rows: pl.DataFrame,
    diagnoses: pl.DataFrame,
    procedures: pl.DataFrame,
    events: Events,
    config: CohortConfig,
    funnel: Funnel,
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    times = None
    if config.visit_order == "admit_time":
        assert events.admissions is not None, "the reader delivers admissions for this order"
        times = events.admissions.drop_nulls("admit_time").unique(ADMISSION, keep="first")
        rows = rows.join(times, on=ADMISSION, how="semi")
        funnel.add("admission has an admission time", int(rows["n"].sum()), rows)
    rows = rows.join(distinct_visits(diagnoses), on=ADMISSION, how="semi")
    funnel.add("admission has a diagnosis", int(rows["n"].sum()), rows)
    if config.require_procedures:
        rows = rows.join(distinct_visits(procedures), on=ADMISSION, how="semi")
        funnel.add("admission has a procedure", int(rows["n"].sum()), rows)
    if config.min_visits_rule == "after_joins":
        rows = _with_enough_visits(rows, config.min_visits)
        funnel.add(f"at least {config.min_visits} visits left", int(rows["n"].sum()), rows)
    return rows, times


def _order(rows: pl.DataFrame, times: pl.DataFrame | None) -> pl.DataFrame:
    """Visits left, numbered patient by patient: by time, or by the number of the admission."""
    visits = distinct_visits(rows)
    order = ["subject", "admission"]
    if times is not None:
        visits = visits.join(times, on=ADMISSION, how="left")
        order = ["subject", "admit_time", "admission"]
    return visits.sort(order).select(
        *ADMISSION,
        patient=pl.col("subject").rank("dense").cast(pl.Int64) - 1,
        visit=pl.int_range(pl.len(), dtype=pl.Int64).over("subject"),
    )


def _group(
    ordered: pl.DataFrame,
    rows: pl.DataFrame,
    classes: pl.DataFrame,
    diagnoses: pl.DataFrame,
    procedures: pl.DataFrame,
) -> pl.DataFrame:
    def sets(table: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
        table = table.join(ordered, on=ADMISSION, how="semi").select(*ADMISSION, column).unique()
        return table.sort(*ADMISSION, column).group_by(ADMISSION).agg(pl.col(column).alias(name))

    visits = (
        ordered.join(sets(diagnoses, "label", "diagnoses"), on=ADMISSION, how="left")
        .join(sets(procedures, "label", "procedures"), on=ADMISSION, how="left")
        .join(sets(rows.join(classes, on="key"), "atc", "drugs"), on=ADMISSION, how="left")
        .with_columns(pl.col("procedures").fill_null([]))
        .sort("patient", "visit")
    )
    # from here on, nothing says which person or which date a row came from
    return visits.select("patient", "visit", "diagnoses", "procedures", "drugs")


def _oracle(
    events: Events, ordered: pl.DataFrame, times: pl.DataFrame | None
) -> pl.DataFrame | None:
    """Planted probabilities of the visits left; they hold for histories in order of time only."""
    if events.oracle is None or times is None:
        return None
    found = ordered.join(events.oracle, on=ADMISSION, how="left").sort("patient", "visit")
    return found.drop("patient", "visit", *ADMISSION)


def _titles(
    rows: pl.DataFrame, table: pl.DataFrame, system: str, maps: CodeMaps, config: CohortConfig
) -> pd.DataFrame:
    visits = distinct_visits(rows)
    present = table.join(visits, on=ADMISSION, how="semi").select("code", "version").unique()
    titles: dict[str, str] = {}
    for code, version in present.sort("code", "version").iter_rows():
        label = icd_label(code, version, config.icd_version_prefix)
        titles[label] = titles.get(label) or maps.title(system, code, version)
    return pd.DataFrame(
        [(system, code, title) for code, title in sorted(titles.items())],
        columns=["system", "code", "title"],
    )
