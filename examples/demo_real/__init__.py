"""The second demo: three adapters on a real base, their data, training configurations and scores."""
