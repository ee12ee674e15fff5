"""Names of drugs as hospitals write them, freed of strengths, salts and dosage forms."""

from __future__ import annotations

import re
import unicodedata

_BRACKETS = re.compile(r"\([^)]*\)|\[[^\]]*\]|\*[^*]*\*")
_STRENGTH = re.compile(
    r"\b\d[\d.,/%-]*\s*(mg|mcg|g|gm|ml|l|meq|mmol|units?|unt|hr|h|mg/ml|percent)?\b|%"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FORM_WORDS = _words(
    """
tablet tablets tab tabs capsule capsules cap caps inj injection iv im po oral solution soln
susp suspension liquid syrup elixir drops drop ophth ophthalmic oph otic nasal spray patch cream
ointment oint gel lotion topical powder pwd inhaler mdi neb nebulizer inhalation sr xr er la cr xl
dr ec sa ds nf enteric coated extended sustained delayed release chewable rapidly disintegrating odt
immediate film hfa pf preservative free vial syringe pca flush premix replacement desensitization
graded challenge ivpb drip infusion concentrated pack ih sc pr ng lock for in on the of with human
recombinant
"""
)
SALT_WORDS = _words(
    """
hydrochloride hcl sodium potassium calcium magnesium sulfate sulphate acetate citrate
tartrate bitartrate phosphate besylate mesylate maleate fumarate succinate gluconate lactate bromide
hydrobromide chloride nitrate dihydrate monohydrate furoate propionate dipropionate valerate
decanoate disodium trihydrate tromethamine hyclate axetil mofetil medoxomil etexilate bisulfate
dimesylate pamoate carbonate palmitate nitroprusside dinitrate mononitrate isethionate
polystyrene
"""
)
"""Words that name a salt; alone they name no drug."""


def normalise_name(name: str) -> str:
    """Drug name as plain lower-case words: no accents, brackets, strengths or dosage forms.

    >>> normalise_name("Metoprolol Tartrate 25 mg Tab (Lopressor)")
    'metoprolol tartrate'
    """
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    text = _BRACKETS.sub(" ", text)
    text = _STRENGTH.sub(" ", text)
    words = re.split(r"[^a-z0-9]+", text)
    return " ".join(word for word in words if word and word not in _FORM_WORDS)


def without_salt(name: str) -> str:
    """Normalised name without salt words; the name itself if nothing would be left."""
    words = [word for word in name.split() if word not in SALT_WORDS]
    return " ".join(words) or name


def name_candidates(name: str) -> tuple[str, ...]:
    """Spellings under which a drug is looked up, most literal first."""
    plain = normalise_name(name)
    bare = without_salt(plain)
    candidates = [plain, bare]
    # "Insulin" entries and mixtures aside, the substance is the first word of a long label
    first = bare.split(" ", 1)[0]
    if len(first) >= 6:
        candidates.append(first)
    return tuple(dict.fromkeys(item for item in candidates if item))
