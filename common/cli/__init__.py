"""The `rampup` command: see the course, see what a step changed, get a hint, check a program, send it to the mentor."""
