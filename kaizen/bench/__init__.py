"""Measures the cost of a step: time by part, arithmetic, memory and traffic, compared with a plain loop and with other
pipelines of views.

Only commands import it; it imports kaizen.training and the floors below.
"""
