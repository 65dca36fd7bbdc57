"""How good it is: reports, results and predictions."""
