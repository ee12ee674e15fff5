"""What is known of the concepts of a cohort: two views, discrete codes; on disk and as tensors.

Letters: N concepts of one kind, V views, L levels, K codes per level, d size of a code.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medrec.data.schema import Vocabularies
from quantum.base import InputError, read_json, write_bytes_atomic, write_json_atomic

KINDS = ("diagnoses", "procedures", "drugs")
VIEWS = ("semantic", "structural")
ARRAYS_FILE, MANIFEST_FILE = "concepts.npz", "manifest.json"
DESCRIPTIONS_FILE = "descriptions.json"


@dataclass(frozen=True)
class ConceptViews:
    """Two descriptions of every concept of one kind.

    Attributes
    ----------
    codes : tuple of str
        Concepts in the cohort's spelling, N of them.
    semantic, structural : ndarray (N, d_1), (N, d_2) of float32
        Of the title, and of the place in the knowledge graph.
    """

    codes: tuple[str, ...]
    semantic: npt.NDArray[np.float32]
    structural: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConceptCodes:
    """Discrete codes of the concepts of one kind.

    Attributes
    ----------
    index : ndarray (N, V, L) of int16
        Code of each concept, per view and level.
    books : ndarray (V, L, K, d) of float32
        Vectors of the codes; a concept's vector in a view is the sum over its levels.
    views : tuple of str
        Which views, V of `VIEWS`.
    """

    index: npt.NDArray[np.int16]
    books: npt.NDArray[np.float32]
    views: tuple[str, ...] = VIEWS


def index_dtype(n_codes: int) -> np.dtype[Any]:
    """Smallest integer type that models keep indices of so many codes in: uint8 or int16."""
    return np.dtype(np.uint8 if n_codes <= 256 else np.int16)


@dataclass(frozen=True)
class ConceptTensors:
    """Codes of one kind in the order of a vocabulary: (N, V, L) and (V, L, K, d)."""

    index: torch.Tensor
    books: torch.Tensor
    views: tuple[str, ...] = VIEWS

    def to(self, device: torch.device | str) -> ConceptTensors:
        """Copy to a device."""
        return ConceptTensors(self.index.to(device), self.books.to(device), self.views)


@dataclass(frozen=True)
class ConceptTable:
    """A finished concept folder.

    Attributes
    ----------
    views, codes : dict
        Per kind of `KINDS`.
    """

    folder: Path
    manifest: dict[str, Any]
    views: dict[str, ConceptViews]
    codes: dict[str, ConceptCodes]

    @property
    def digest(self) -> str:
        """Digest of everything that went into the table."""
        return str(self.manifest["digest"])

    @cached_property
    def _descriptions(self) -> dict[str, Any]:
        """Titles and neighbours, read when they are first asked for; they may be absent."""
        file = self.folder / DESCRIPTIONS_FILE
        return dict(read_json(file)) if file.is_file() else {}

    def titles(self, kind: str) -> tuple[str, ...]:
        """Title of each concept of a kind; its code where there is none."""
        known = self._descriptions.get(kind, {}).get("titles", {})
        return tuple(known.get(code, code) for code in self.views[kind].codes)

    def neighbours(self, kind: str, code: str) -> list[tuple[str, str]]:
        """Relation and label of each stored neighbour of a concept in the knowledge graph."""
        known = self._descriptions.get(kind, {}).get("neighbours", {})
        return [(str(relation), str(label)) for relation, label in known.get(code, ())]

    @classmethod
    def load(cls, folder: Path) -> ConceptTable:
        """Open a concept folder.

        Raises
        ------
        InputError
            If it is incomplete or damaged.
        """
        manifest = read_json(folder / MANIFEST_FILE)
        views, codes = {}, {}
        try:
            with np.load(folder / ARRAYS_FILE, allow_pickle=False) as packed:
                for kind in KINDS:
                    names = tuple(str(item) for item in packed[f"{kind}.codes"])
                    views[kind] = ConceptViews(
                        names, packed[f"{kind}.semantic"], packed[f"{kind}.structural"]
                    )
                    codes[kind] = ConceptCodes(
                        packed[f"{kind}.index"],
                        packed[f"{kind}.books"],
                        tuple(manifest["views"]),
                    )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"concept table is incomplete or damaged: {folder} ({type(error).__name__}); "
                "make it again with `medrec concepts`"
            ) from error
        return cls(folder, manifest, views, codes)

    def save(self) -> None:
        """Write arrays and manifest into the folder."""
        arrays: dict[str, Any] = {}
        for kind in KINDS:
            views, codes = self.views[kind], self.codes[kind]
            arrays |= {
                f"{kind}.codes": np.array(views.codes, dtype=np.str_),
                f"{kind}.semantic": views.semantic,
                f"{kind}.structural": views.structural,
                f"{kind}.index": codes.index,
                f"{kind}.books": codes.books,
            }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self.folder / ARRAYS_FILE, buffer.getvalue())
        write_json_atomic(self.folder / MANIFEST_FILE, self.manifest)

    def align(self, vocabularies: Vocabularies) -> dict[str, ConceptTensors]:
        """Codes in the order of vocabularies, as tensors.

        Raises
        ------
        InputError
            If a vocabulary holds a concept that the table does not.
        """
        found = {}
        for kind in KINDS:
            place = {code: i for i, code in enumerate(self.views[kind].codes)}
            wanted = getattr(vocabularies, kind).codes
            missing = [code for code in wanted if code not in place]
            if missing:
                raise InputError(
                    f"concept table {self.folder.name} lacks {len(missing)} of {len(wanted)} "
                    f"{kind} codes (first: {missing[0]}); expected a table of the same cohort"
                )
            rows = np.array([place[code] for code in wanted], dtype=np.int64)
            codes = self.codes[kind]
            found[kind] = ConceptTensors(
                torch.from_numpy(codes.index[rows].astype(np.int64)),
                torch.from_numpy(codes.books),
                codes.views,
            )
        return found
