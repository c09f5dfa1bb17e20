"""The student: candidates, what they cost, which are chosen."""

COSTS = ("num_params", "num_flops", "latency_ms")  # that add up over blocks; attributes of a candidate
