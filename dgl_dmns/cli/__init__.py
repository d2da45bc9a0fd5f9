"""The command line: ``dgl-dmns train|bench|report|doctor``."""

from dgl_dmns.cli.parser import main, make_parser

__all__ = ["main", "make_parser"]
