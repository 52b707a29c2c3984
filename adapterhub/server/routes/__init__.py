"""The paths of the server, one router a file."""
