"""What pytest leaves out where the installed DGL has no part for it."""

from dgl_dmns._compat import require_graphbolt

collect_ignore = []
try:
    require_graphbolt()
except ImportError:  # doctests import every module; test_graphbolt.py skips itself
    collect_ignore.append("dgl_dmns/graphbolt.py")
