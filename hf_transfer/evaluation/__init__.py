"""How good a model is: results, reports and predictions."""
