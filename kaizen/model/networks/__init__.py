"""Encoders, heads and norms: plain torch modules that know neither processes nor configuration files.

Learner, methods and distillers import them; they import kaizen.config and kaizen.errors.
"""
