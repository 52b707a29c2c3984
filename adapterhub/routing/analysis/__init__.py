"""How good a router is: evaluation, reports, health of the routes, explanations."""
