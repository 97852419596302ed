"""`python -m peon` is the command `peon`."""

from peon.cli import main

main()
