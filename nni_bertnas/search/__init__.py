"""What searches: strategies, their evaluator, baselines."""
