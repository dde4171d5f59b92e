"""`python -m exporter`: the same as `edgeproof`."""

from exporter.cli import main

main()
