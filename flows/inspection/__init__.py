"""Correspondences to be looked at: pictures of what is known of a clip before any edit, and of what an edit keeps."""
