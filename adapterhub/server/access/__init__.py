"""Who may call what: keys, levels of paths, limits, and the audit log of admin actions."""
