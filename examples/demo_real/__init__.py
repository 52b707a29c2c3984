"""The second demo: adapters on a real base, their data, training configurations and scores."""
