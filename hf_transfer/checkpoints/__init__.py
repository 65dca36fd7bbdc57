"""Files on disk: atomic writes, digests, free space; used by stored activations and by resuming."""
