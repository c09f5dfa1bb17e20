"""The three phases. They never import each other; they chain through artifacts.

Each has `NAMES`, the parameters of a unit of work; `OPTIMIZE`, whether its number is to be low or high;
`units(study, num_blocks)`, all its units; `find(study, **unit)`, the finished result of a unit where it still fits;
and `run(study, **unit, tracker)`.
"""
