"""What is said of faces. Imports nothing."""

HIDDEN = ("anonymized", "obscured", "covered")
"""Verdicts of hidden faces that may be published, see docs/anonymize.md."""
KEPT = "kept as asked"
"""Verdict of a face that stays visible because the user named it, its person, or others alone."""
VISIBLE = ("left as it is", KEPT)
"""Verdicts of faces that nobody hid."""
