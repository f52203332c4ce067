"""The fault matrix: what is injected, and what must hold after it. `make faults` runs it.

`table.py` collects the rows that the other modules register; `project.py` makes the project that is hurt, and
`operations.py` hurts it. To add a fault, write a generator of trials under `@fault` and import its module in
`rows.py`.
"""
