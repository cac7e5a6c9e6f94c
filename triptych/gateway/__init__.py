"""The gateway: one door in front of the three stages."""
