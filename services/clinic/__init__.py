"""The clinician-facing API and viewer: a question about an image, answered with its evidence."""
