"""Turns a source of images into the host batch of a step: sources, a store of decoded pixels, tasks (stream.py), the
order of samples (sampler.py), the replay memory (replay.py), views (views.py), and random numbers that depend on
counters alone (random.py).

Model and the floors above import it; it imports kaizen.run and the floors below.
"""
