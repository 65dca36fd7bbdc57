"""Every setting of a run, by topic: the only list of flags, and how they are parsed."""
