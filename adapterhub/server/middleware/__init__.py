"""What every request passes before its route: pure ASGI, so that streams and disconnects pass too."""
