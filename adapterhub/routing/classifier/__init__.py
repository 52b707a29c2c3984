"""The text classifier: features, one-vs-rest linear head, nearest neighbours, calibration, storage."""
