"""Other systems that run adapterhub, a package each."""
