"""Plain text as people and models write it: its display width, its blocks, and lines of a given width."""
