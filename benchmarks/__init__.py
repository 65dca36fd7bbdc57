"""Our accuracy and speed next to what people would use instead."""
