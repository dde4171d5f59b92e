"""`python -m bench`: the commands of a device."""

from bench.cli import main

main()
