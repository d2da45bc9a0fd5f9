"""Settings of the tests that pytest's own configuration has no place for."""

import os

# Before torch is loaded, and for the processes that tests start: a thread that has nothing to do
# sleeps.  By default it spins, which takes the time of those that have, in another process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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
