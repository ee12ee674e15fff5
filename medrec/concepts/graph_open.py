"""The open knowledge graph: what takes the place of the UMLS when its licence is not at hand.

Relations, always from the first to the second:

=========================== ====================================================================
is_a                        code → broader code → block → chapter; ATC level → broader level;
                            Disease Ontology term → parent
grouped_as                  code → CCS group; group of procedures → its chapter
crosswalk_exact, _approx    ICD-9-CM → ICD-10-CM; ``crosswalk_broad`` to categories, where a code
                            has more than eight counterparts
procedure_crosswalk         ICD-9-CM procedure → ICD-10-PCS, among the cohort's concepts
same_substance              ATC level 5 → ATC level 5 of the same name
treats, relieves            ATC level 5 → disease (PharmacotherapyDB DM, SYM; NOT is left out)
indicated_for               ATC level 5 → disease (LabeledIn)
coded_as, coded_within      disease → ICD code; → the deepest broader code that the graph has
coded_range                 disease → categories of a range of at most ten (401-405.99)
interacts_<grade>           drug class → drug class, as in the cohort's interaction table
=========================== ====================================================================

Only the list of codes decides what is in the graph; who had them, and how often, is not read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import pandas as pd

from medrec.concepts.graph import GraphBuilder, KnowledgeGraph
from medrec.concepts.knowledge import ICD9_PROCEDURE_CHAPTERS, ICD10_PROCEDURE_SECTIONS
from medrec.concepts.titles import Concept, Describer
from medrec.data.ddi import SEVERITY_NAMES
from medrec.data.drug_names import name_candidates

_MAX_COUNTERPARTS = 8
_ICD9_REFERENCE = re.compile(r"(\d{3}|V\d\d|E\d{3})(?:\.(\d{1,2}))?")
_ICD10_REFERENCE = re.compile(r"([A-Z]\d[0-9A-Z])(?:\.([0-9A-Z]{1,4}))?")
_ICD9_RANGE = re.compile(r"(\d{3})-(\d{3})(?:\.\d{1,2})?")
_MAX_RANGE = 10
_REFERENCES = {"ICD9": ("dx9", _ICD9_REFERENCE), "ICD10": ("dx10", _ICD10_REFERENCE)}


def build_open_graph(
    concepts: Mapping[str, Sequence[str]], describer: Describer, interactions: pd.DataFrame | None
) -> tuple[KnowledgeGraph, dict[str, int]]:
    """Graph around the concepts of a cohort.

    Parameters
    ----------
    concepts : mapping
        Per kind the codes in the cohort's spelling.
    interactions : pandas.DataFrame, optional
        ``atc_a``, ``atc_b``, ``severity``; pairs of other classes are left out.

    Returns
    -------
    graph : KnowledgeGraph
    facts : dict
        Disease references that are malformed or long ranges; indications whose drug has no ATC
        name.
    """
    parsed = {
        kind: [describer.concept(kind, label) for label in labels]
        for kind, labels in concepts.items()
    }
    builder = GraphBuilder()
    hierarchy = Hierarchy(builder, describer)
    everything = sorted({concept for found in parsed.values() for concept in found})
    for concept in everything:
        hierarchy.add(concept)
    _add_counterparts(builder, hierarchy, everything)
    _add_procedure_links(builder, hierarchy, everything)
    drugs = _add_substances(builder, hierarchy, everything)
    facts = _add_diseases(builder, describer, drugs)
    if interactions is not None:
        _add_interactions(builder, interactions)
    return builder.build({kind: [item.node for item in parsed[kind]] for kind in parsed}), facts


class Hierarchy:
    """Adds codes with everything above them."""

    def __init__(self, builder: GraphBuilder, describer: Describer) -> None:
        self.builder = builder
        self.describer = describer
        self.tables = describer.tables

    def add(self, concept: Concept) -> str:
        """Add a concept, what is broader, and its groups; the name of its node comes back."""
        if concept.node in self.builder:
            return concept.node
        node = self.builder.add_node(concept.node, self._label(concept))
        broader = self._broader(concept)
        if broader is not None:
            self.builder.add_edge(node, "is_a", self.add(broader))
        elif concept.system in ("dx9", "dx10"):
            self._add_place(concept)
        elif concept.system == "px9":
            self._add_chapter(node, concept.code)
        self._add_group(concept)
        return node

    def _label(self, concept: Concept) -> str:
        system, code = concept
        if system == "dx9" and code in self.tables.icd9:
            return self.tables.icd9[code].title
        if system == "dx10" and code in self.tables.icd10:
            return self.tables.icd10[code].title
        if system == "px10" and len(code) == 1:
            return ICD10_PROCEDURE_SECTIONS.get(code, code)
        if system == "atc":
            return self.describer.maps.atc_names.get(code, code)
        return self.describer.describe(concept)[0]

    def _broader(self, concept: Concept) -> Concept | None:
        system, code = concept
        if system == "path":
            above = code.rpartition("|")[0]
            return Concept(system, above) if above else None
        lengths: Iterable[int] = {
            "dx9": range(len(code) - 1, 3 if code.startswith("E") else 2, -1),
            "dx10": range(len(code) - 1, 2, -1),
            "px9": range(len(code) - 1, 1, -1),
            "px10": (n for n in (4, 3, 2, 1) if n < len(code)),
            "atc": (n for n in (5, 4, 3, 1) if n < len(code)),
        }[system]
        if system == "dx10":  # fillers (T814XXA) make lengths that are no code
            lengths = (n for n in lengths if n == 3 or code[:n] in self.tables.icd10)
        length = next(iter(lengths), None)
        return None if length is None else Concept(system, code[:length])

    def _add_place(self, concept: Concept) -> None:
        """Block and chapter of a category of diagnoses."""
        system, code = concept
        place = (self.tables.icd9 if system == "dx9" else self.tables.icd10).get(code)
        if place is None:
            return
        chapter = self.builder.add_node(f"{system}_chapter:{place.chapter}", place.chapter)
        if not place.block:
            self.builder.add_edge(concept.node, "is_a", chapter)
            return
        # two chapters may have a block of one name
        block = f"{system}_block:{place.chapter}/{place.block}"
        self.builder.add_edge(concept.node, "is_a", self.builder.add_node(block, place.block))
        self.builder.add_edge(block, "is_a", chapter)

    def _add_chapter(self, node: str, category: str) -> None:
        number = int(category[:2]) if category[:2].isdigit() else -1
        for (first, last), name in ICD9_PROCEDURE_CHAPTERS.items():
            if first <= number <= last:
                chapter = self.builder.add_node(f"px9_chapter:{first:02d}-{last:02d}", name)
                self.builder.add_edge(node, "is_a", chapter)

    def _add_group(self, concept: Concept) -> None:
        system, code = concept
        if system == "dx9" and code in self.tables.ccs_diagnoses:
            number, name = self.tables.ccs_diagnoses[code]
            group = self.builder.add_node(f"ccs_dx:{number}", name)
            self.builder.add_edge(concept.node, "grouped_as", group)
        elif system == "px10" and code in self.tables.ccs_procedures:
            self._add_procedure_group(concept.node, self.tables.ccs_procedures[code])
        elif system == "px9":
            # the single-level table of ICD-9 is not shipped: the group of most counterparts
            targets = self.tables.procedures_9_to_10.get(code, [])
            groups = self.tables.ccs_procedures
            votes = Counter(groups[item] for item in targets if item in groups)
            if votes:
                best = max(votes.items(), key=lambda item: (item[1], item[0]))[0]
                self._add_procedure_group(concept.node, best)

    def _add_procedure_group(self, node: str, number: str) -> None:
        name, chapter = self.tables.ccs_procedure_groups[number]
        group = self.builder.add_node(f"ccs_px:{number}", name)
        self.builder.add_edge(node, "grouped_as", group)
        above = self.builder.add_node(f"ccs_px_chapter:{chapter}", chapter)
        self.builder.add_edge(group, "grouped_as", above)


def _add_counterparts(
    builder: GraphBuilder, hierarchy: Hierarchy, concepts: Iterable[Concept]
) -> None:
    """Codes of the other ICD version for every diagnosis of the cohort."""
    tables = hierarchy.tables
    for concept in concepts:
        if concept.system == "dx9":
            pairs, other = tables.diagnoses_9_to_10.get(concept.code, []), "dx10"
        elif concept.system == "dx10":
            pairs, other = tables.diagnoses_10_to_9.get(concept.code, []), "dx9"
        else:
            continue
        if len(pairs) > _MAX_COUNTERPARTS:
            size = 4 if other == "dx9" and pairs[0][0].startswith("E") else 3
            found = {(code[:size], "crosswalk_broad") for code, _ in pairs}
        else:
            found = {(code, f"crosswalk_{'exact' if same else 'approx'}") for code, same in pairs}
        for code, relation in sorted(found):
            ends = (concept.node, hierarchy.add(Concept(other, code)))
            builder.add_edge(*_from_old(ends, relation, concept.system))


def _from_old(ends: tuple[str, str], relation: str, system: str) -> tuple[str, str, str]:
    """Edge from ICD-9 to ICD-10, whichever of them the first end is."""
    return (ends[0], relation, ends[1]) if system == "dx9" else (ends[1], relation, ends[0])


def _add_procedure_links(
    builder: GraphBuilder, hierarchy: Hierarchy, concepts: Iterable[Concept]
) -> None:
    """Crosswalk among the procedures of the cohort; one code may have hundreds of others."""
    for concept in concepts:
        if concept.system == "px9":
            for code in hierarchy.tables.procedures_9_to_10.get(concept.code, []):
                other = Concept("px10", code).node
                if other in builder:
                    builder.add_edge(concept.node, "procedure_crosswalk", other)


def _add_substances(
    builder: GraphBuilder, hierarchy: Hierarchy, concepts: Iterable[Concept]
) -> set[str]:
    """Substances of every drug class; those of one name are joined. Their ATC codes come back."""
    describer = hierarchy.describer
    codes = {
        member
        for concept in concepts
        if concept.system == "atc"
        for member in describer.members(concept.code)
    }
    by_name: dict[str, list[str]] = defaultdict(list)
    for code in sorted(codes):
        hierarchy.add(Concept("atc", code))
        by_name[describer.maps.atc_names.get(code, code)].append(f"atc:{code}")
    for nodes in by_name.values():
        for pair in combinations(nodes, 2):
            builder.add_edge(pair[0], "same_substance", pair[1])
    return codes


# --------------------------------------------------------------------------- diseases


def _add_diseases(builder: GraphBuilder, describer: Describer, drugs: set[str]) -> dict[str, int]:
    """Diseases that are coded in the graph or treated by its drugs, with what is above them."""
    codes, skipped = _coded(builder, describer)
    uses, unknown = _indications(describer, drugs)
    terms = describer.tables.disease_terms
    for doid in sorted({item[0] for item in codes} | {item[2] for item in uses}):
        _add_term(builder, describer, doid)
    for doid, relation, node in codes:
        if doid in terms:
            builder.add_edge(_disease(doid), relation, node)
    for atc, relation, doid in uses:
        if doid in terms:
            builder.add_edge(f"atc:{atc}", relation, _disease(doid))
    return {
        "disease_references_not_used": skipped,
        "indications_without_atc_name": unknown,
    }


def _disease(doid: str) -> str:
    return f"do:{doid.removeprefix('DOID:')}"


def _add_term(builder: GraphBuilder, describer: Describer, doid: str) -> None:
    term = describer.tables.disease_terms.get(doid)
    if term is None or _disease(doid) in builder:
        return
    builder.add_node(_disease(doid), term.name)
    for parent in term.parents:
        _add_term(builder, describer, parent)
        if _disease(parent) in builder:
            builder.add_edge(_disease(doid), "is_a", _disease(parent))


def _coded(builder: GraphBuilder, describer: Describer) -> tuple[list[tuple[str, str, str]], int]:
    """Disease, relation and ICD node; and how many references are no code and no short range."""
    found, skipped = [], 0
    for doid, system, text in describer.tables.disease_references:
        if system not in _REFERENCES:
            continue
        short, pattern = _REFERENCES[system]
        parts = pattern.fullmatch(text)
        if parts is None:
            categories = _in_range(text)
            skipped += not categories
            found += [(doid, "coded_range", node) for node in categories if node in builder]
            continue
        code = "".join(part or "" for part in parts.groups())
        place = deepest_known(builder, short, code)
        if place is not None:
            relation = "coded_as" if place == f"{short}:{code}" else "coded_within"
            found.append((doid, relation, place))
    return found, skipped


def _in_range(text: str) -> list[str]:
    """Nodes of the ICD-9 categories of a range; none if it is no range, or a long one."""
    parts = _ICD9_RANGE.fullmatch(text)
    first, last = (int(part) for part in parts.groups()) if parts else (0, -1)
    numbers = range(first, last + 1)
    return [f"dx9:{number:03d}" for number in numbers] if len(numbers) <= _MAX_RANGE else []


def deepest_known(builder: GraphBuilder, system: str, code: str) -> str | None:
    """Node of a code, or of the longest beginning of at least three characters that has one."""
    beginnings = (f"{system}:{code[:n]}" for n in range(len(code), 2, -1))
    return next((node for node in beginnings if node in builder), None)


def _indications(describer: Describer, drugs: set[str]) -> tuple[list[tuple[str, str, str]], int]:
    """ATC level 5, relation and disease; and how many indications have no ATC name."""
    tables, by_name = describer.tables, describer.maps.by_name
    diseases: dict[str, list[str]] = defaultdict(list)
    for doid, system, code in tables.disease_references:
        if system == "UMLS":
            diseases[code].append(doid)
    named = [(drug, relation, [doid]) for drug, relation, doid in tables.indications]
    named += [
        (drug, "indicated_for", diseases.get(concept, []))
        for drug, concept in tables.label_indications
    ]
    found, unknown = [], 0
    for drug, relation, doids in named:
        spelling = next((item for item in name_candidates(drug) if item in by_name), None)
        if spelling is None:
            unknown += 1
            continue
        codes = sorted(by_name[spelling] & drugs)
        found += [(atc, relation, doid) for atc in codes for doid in doids]
    return found, unknown


def _add_interactions(builder: GraphBuilder, interactions: pd.DataFrame) -> None:
    columns = (interactions[name].tolist() for name in ("atc_a", "atc_b", "severity"))
    for a, b, severity in zip(*columns, strict=True):
        ends = (f"atc:{a}", f"atc:{b}")
        if ends[0] in builder and ends[1] in builder:
            grade = SEVERITY_NAMES[severity].replace(" ", "_")
            builder.add_edge(ends[0], f"interacts_{grade}", ends[1])
