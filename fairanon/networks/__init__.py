"""Networks that one method owns."""

from fairanon.networks.id2face_networks import NegatedIdentity, OrthogonalIdentityMapping

__all__ = ["NegatedIdentity", "OrthogonalIdentityMapping"]
