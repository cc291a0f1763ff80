"""Values of examples under a frozen model, which are computed once, before the models of a run are loaded.

- `store.py`: `Store`, the values of a tokenized data set on disk; `scorer.py`: `Scorer`, the model that gives them.
- `reference.py`: `ReferenceScores`, log-probabilities of pairs: `model.reference: precomputed`.
- `difficulty.py`: `InstructionDifficulty`, how much a prompt helps with its response: `data.select: ifd`.
"""
