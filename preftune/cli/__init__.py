"""The command line: `main` finds the command, one thin file each does it. Nothing here imports torch."""
