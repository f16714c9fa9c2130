"""The build backend: setuptools, after the check of the Python version in kaizen/__init__.py.

pip asks the backend before it looks for anything else to download; by themselves older versions of pip download every
library, and only then tell that Python is too old.
"""

from setuptools.build_meta import *  # noqa: F403
