"""Video files in and out: what decoding, export and preview share. No model, no torch."""
