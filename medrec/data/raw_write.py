"""Writing a made-up hospital in MIMIC's own columns, piece by piece, as gzip CSV."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from medrec.data import raw_columns
from medrec.data.planted import Int
from medrec.data.raw_plan import NO_DIAGNOSIS, NO_PROCEDURE, Admissions
from medrec.data.raw_products import Products
from medrec.data.synthetic import Codes, Hospital, expand

Like = Literal["mimic3", "mimic4"]
Tell = Callable[[int, int, str], None]
"""Called with prescription rows written, rows in all, and a note."""

_ADMISSIONS_PER_PIECE = 8_000
_OUTPATIENT_SHARE = 0.01
_HOUR = np.timedelta64(3_600, "s")


class TableFile:
    """One gzip CSV that grows; packing runs on a thread of its own."""

    def __init__(self, path: Path, columns: tuple[str, ...], pool: ThreadPoolExecutor) -> None:
        self.columns, self.rows = columns, 0
        self.pool = pool
        self.waiting: Future[int] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = gzip.open(path, "wb", compresslevel=1)  # noqa: SIM115 - closed by close()
        self.file.write((",".join(columns) + "\n").encode())

    def append(self, frame: pl.DataFrame) -> None:
        """Add rows; the frame has the file's columns in lower case, in any order."""
        buffer = io.BytesIO()
        frame = frame.select(name.lower() for name in self.columns)
        frame.write_csv(buffer, include_header=False, datetime_format="%Y-%m-%d %H:%M:%S")
        self.rows += len(frame)
        self.settle()
        self.waiting = self.pool.submit(self.file.write, buffer.getbuffer())

    def settle(self) -> None:
        """Wait for the piece that is being packed."""
        if self.waiting is not None:
            self.waiting.result()
            self.waiting = None

    def close(self) -> None:
        """Finish the file."""
        self.settle()
        self.file.close()


def write_tables(
    like: Like,
    folder: Path,
    hospital: Hospital,
    products: Products,
    plan: Admissions,
    rng: np.random.Generator,
    tell: Tell,
) -> dict[str, int]:
    """Write all tables; returns the number of rows of each."""
    total = int(plan.rows.sum())
    starts = np.arange(0, len(plan), _ADMISSIONS_PER_PIECE)
    drugs = Codes(*np.nonzero(hospital.given))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        files = {}
        for table, columns in raw_columns.TABLES[like].items():
            files[table] = TableFile(raw_columns.table_path(like, folder, table), columns, pool)
            stack.callback(files[table].close)
        done = 0
        for start in starts:
            piece = Piece(plan, slice(start, min(start + _ADMISSIONS_PER_PIECE, len(plan))), rng)
            for table, frame in piece.frames(like, hospital, products, drugs, files).items():
                files[table].append(frame)
            done += int(plan.rows[piece.part].sum())
            tell(done, total, "writing tables")
        return {table: file.rows for table, file in files.items()}


class Piece:
    """Some admissions in a row."""

    def __init__(self, plan: Admissions, part: slice, rng: np.random.Generator) -> None:
        self.plan, self.part, self.rng = plan, part, rng
        self.subject, self.number = plan.subject[part], plan.number[part]
        self.kind, self.template, self.time = plan.kind[part], plan.template[part], plan.time[part]
        self.first = part.start == 0 or plan.subject[part.start - 1] != self.subject[0]

    def frames(
        self,
        like: Like,
        hospital: Hospital,
        products: Products,
        drugs: Codes,
        files: dict[str, TableFile],
    ) -> dict[str, pl.DataFrame]:
        """Rows of every table, with all columns of the format."""
        plan = hospital.plan
        frames = {
            "prescriptions": self._prescriptions(products, drugs, len(hospital.patient)),
            "admissions": self._stays(self.number, self.time),
            "patients": self._patients(),
        }
        for table, codes, system, lacking in (
            ("diagnoses_icd", hospital.diagnoses, plan.diagnoses, NO_DIAGNOSIS),
            ("procedures_icd", hospital.procedures, plan.procedures, NO_PROCEDURE),
        ):
            kept = np.flatnonzero(self.kind != lacking)
            owner, place, seq = self._runs(codes, kept, len(hospital.patient))
            code = codes.code[place]
            frames[table] = pl.DataFrame(
                {
                    "subject_id": self.subject[kept][owner],
                    "hadm_id": self.number[kept][owner],
                    "seq_num": seq + 1,
                    "code": pl.Series([item.code for item in system.codes]).gather(code),
                    "icd_version": np.array([item.version for item in system.codes])[code],
                    "chartdate": self.time[kept][owner].astype("datetime64[us]"),
                }
            )
        return {
            table: raw_columns.complete(like, table, frame, files[table].rows, self.rng)
            for table, frame in frames.items()
        }

    def _runs(self, codes: Codes, kept: Int, n: int) -> tuple[Int, Int, Int]:
        """Owner, place and number in the visit of every code of some admissions' templates."""
        bounds = np.searchsorted(codes.visit, np.arange(n + 1))
        template = self.template[kept]
        lengths = bounds[template + 1] - bounds[template]
        owner, place = expand(bounds[template], lengths)
        return owner, place, place - bounds[template][owner]

    def _prescriptions(self, products: Products, drugs: Codes, n: int) -> pl.DataFrame:
        plan, part, rng = self.plan, self.part, self.rng
        kept = np.flatnonzero(plan.mapped[part] > 0)
        owner, place, _ = self._runs(drugs, kept, n)
        bounds = np.searchsorted(drugs.visit, np.arange(n + 1))
        template = self.template[kept]
        lengths = bounds[template + 1] - bounds[template]
        again = np.repeat(np.arange(len(kept)), plan.mapped[part][kept] - lengths)
        more = bounds[template][again] + (rng.random(len(again)) * lengths[again]).astype(int)
        n_classes = len(products.start) - 2
        everyone = np.arange(len(self.subject))
        owners = [
            kept[owner],
            kept[again],
            np.repeat(everyone, plan.no_molecule[part]),
            np.repeat(everyone, plan.unmapped[part]),
        ]
        groups = [
            drugs.code[place],
            drugs.code[more],
            np.full(len(owners[2]), n_classes),
            np.full(len(owners[3]), n_classes + 1),
        ]
        stay, group = np.concatenate(owners), np.concatenate(groups)
        order = np.lexsort((rng.random(len(stay)), stay))
        stay, group = stay[order], group[order]
        product = products.start[group] + (rng.random(len(group)) * products.count[group]).astype(
            int
        )
        return self._orders(products, stay, product, group == n_classes + 1)

    def _orders(
        self, products: Products, stay: Int, product: Int, nothing: NDArray[np.bool_]
    ) -> pl.DataFrame:
        """Prescription rows, and some of the same products outside any admission."""
        rng = self.rng
        outside = rng.integers(0, max(len(stay), 1), round(_OUTPATIENT_SHARE * len(stay)))
        row = np.concatenate([np.arange(len(stay)), outside])
        inside = np.arange(len(row)) < len(stay)
        kind = np.where(nothing[row], rng.choice(3, size=len(row), p=[0.1, 0.7, 0.2]), 0)
        start = self.time[stay[row]] + rng.integers(0, 120, len(row)) * _HOUR
        frame = products.table[product[row]].with_columns(
            subject_id=self.subject[stay[row]],
            hadm_id=self.number[stay[row]],
            drug_type=pl.Series(["MAIN", "BASE", "ADDITIVE"]).gather(kind),
            start=start.astype("datetime64[us]"),
            stop=(start + rng.integers(1, 96, len(row)) * _HOUR).astype("datetime64[us]"),
        )
        inside_stay = pl.Series("inside", inside)
        return frame.with_columns(hadm_id=pl.when(inside_stay).then("hadm_id"))

    def _stays(self, number: Int, time: NDArray[np.datetime64]) -> pl.DataFrame:
        days = self.rng.integers(24, 400, len(number)) * _HOUR
        return pl.DataFrame(
            {
                "subject_id": self.subject,
                "hadm_id": number,
                "admittime": time.astype("datetime64[us]"),
                "dischtime": (time + days).astype("datetime64[us]"),
            }
        )

    def _patients(self) -> pl.DataFrame:
        new = np.flatnonzero(np.diff(self.subject, prepend=-1))
        new = new if self.first else new[1:]
        return pl.DataFrame(
            {"subject_id": self.subject[new], "begin": self.time[new].astype("datetime64[us]")}
        )
