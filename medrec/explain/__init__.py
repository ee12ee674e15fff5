"""Why a drug was recommended: what its score owes to the history and to substructures.

Start at `medrec.explain.explain`. All effects are occlusions: the score with everything, minus the
score with one thing left out. They describe the model and are no statement of cause.
"""
