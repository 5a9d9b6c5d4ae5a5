"""`python -m common.cli` is `rampup`."""

from common.cli.commands import main

main()
