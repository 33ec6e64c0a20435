"""Networks that one method owns."""
