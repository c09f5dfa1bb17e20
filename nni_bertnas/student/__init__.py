"""The student: candidates, what they cost, which are chosen."""
