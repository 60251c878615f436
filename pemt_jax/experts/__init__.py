"""Banks of trained deltas, the gates that mix them, and their storage."""
