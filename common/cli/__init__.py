"""The `rampup` command: see the course, see what a step changed, check a program, send it to the mentor."""
