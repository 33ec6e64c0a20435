"""Photographs: find faces, hide them, attack what was hidden, publish or not; and numbers of anybody's anonymizer."""
