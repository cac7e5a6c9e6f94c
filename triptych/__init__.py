"""Stable Diffusion in three panels."""
