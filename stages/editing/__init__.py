"""What the two editing stages share: the edit's Spec, and one denoising step in its two halves."""
