"""One run: the loop over tasks (trainer.py), a step in its host half (step.py) and its device half (device_step.py,
recording.py), the plan of steps and rates (plan.py), optimizers (optim.py), the state of a task (state.py) and what the
task leaves behind besides it (remember.py, align.py).

Bench and commands import it; it imports kaizen.evaluation and the floors below.
"""
