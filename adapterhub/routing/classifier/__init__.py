"""The linear classifier: features, fitting, scores, storage."""
