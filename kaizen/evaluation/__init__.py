"""Measures what a run has learned and forgotten: features of every test image (features.py), readers that classify them
(readers/), metrics (metrics.py), results.json (results.py) and tables.

Training and the floors above import it; it imports kaizen.model and the floors below.
"""
