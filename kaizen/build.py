"""The build backend: setuptools, after the check of the Python version in kaizen/__init__.py.

pip asks the backend before it looks for libraries to download. Without this check, older versions of pip download every
library first, and only then report that Python is too old.
"""

from setuptools.build_meta import *  # noqa: F403
