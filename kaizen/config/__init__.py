"""The configuration: keys with their defaults, types and ranges (schema.py), and strict YAML (yaml.py).

Every folder may import it; it imports only kaizen.errors.
"""
