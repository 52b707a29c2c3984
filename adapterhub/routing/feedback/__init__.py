"""What comes back from use: the decision log, labelled requests, corrections that go into the cards."""
