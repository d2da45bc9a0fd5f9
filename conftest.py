"""Settings of the tests that pytest's own configuration has no place for."""

from hypothesis import settings

from dgl_dmns._compat import require_graphbolt

# The same examples in every run, and as much time for each as a busy machine takes.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

collect_ignore = []
try:
    require_graphbolt()
except ImportError:  # doctests import every module; test_graphbolt.py skips itself
    collect_ignore.append("dgl_dmns/graphbolt.py")
