"""How good a router is: evaluation, health, reports, explanations."""
