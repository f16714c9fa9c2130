"""What a user takes away from a run: a model for images of their own (model.py), read from the run or from the folder
that `export` writes (export.py), which needs no trainer.

The commands import it, and users through `kaizen.load_model`; it imports kaizen.evaluation and the floors below.
"""
