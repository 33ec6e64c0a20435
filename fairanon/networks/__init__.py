"""Networks that one method owns."""

from fairanon.networks.id2face_networks import OrthogonalIdentityMapping

__all__ = ["OrthogonalIdentityMapping"]
