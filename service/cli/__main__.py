"""`python -m service.cli` is `vm-sync`."""

from service.cli import main

main()
